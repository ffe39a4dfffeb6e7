"""helpers/download.py against local servers that fail in every way known to us."""

import builtins
import errno
import hashlib
import io
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
from filelock import FileLock
from torchvision.datasets import CIFAR10

from helpers import dataset
from helpers import download as net
from helpers.download import DownloadError, download, extract, locked
from tests.shared import raising

BODY = bytes(range(256)) * 4000  # 1 MB: more than the sockets' buffers take at once
HALF = len(BODY) // 2
MD5 = hashlib.md5(BODY).hexdigest()
WRONG = BODY[::-1]


class Handler(BaseHTTPRequestHandler):
    """Serves BODY in the manner that the path names, and logs each request."""

    protocol_version = "HTTP/1.1"
    timeout = 5

    def do_GET(self):
        manner = self.path.strip("/")
        self.server.log.append((manner, self.headers.get("Range")))
        self.close_connection = True
        with suppress(ConnectionError):
            getattr(self, manner)()

    def log_message(self, *args):
        pass

    def start(self, body=BODY, *, ranges=True, length=None):
        """Send the header, and return the bytes that are to follow."""
        first, asked = 0, self.headers.get("Range")
        if asked and ranges:
            first = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if first >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return b""
            self.send_response(206)
            whole = len(body) if length is None else length
            self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        else:
            self.send_response(200)
        length = len(body) if length is None else length
        self.send_header("Content-Length", str(length - first))
        self.end_headers()
        return body[first:]

    def good(self):
        self.wfile.write(self.start())

    def no_range(self):
        self.wfile.write(self.start(ranges=False))

    def wrong(self):
        self.wfile.write(self.start(WRONG))

    def wrong_and_cut(self):
        rest = self.start(WRONG)
        self.wfile.write(rest if self.headers.get("Range") else rest[:HALF])

    def bigger(self):
        self.wfile.write(self.start(length=len(BODY) + 1))

    def missing(self):
        self.send_error(404)

    def silent(self):
        """Answers too late."""
        self.server.release.wait(5)
        self.good()

    def hang_up(self):
        pass

    def empty(self):
        self.start()

    def stall(self):
        """Breaks off in the middle, and goes on too late."""
        rest = self.start()
        self.wfile.write(rest[:HALF])
        self.server.release.wait(5)
        self.wfile.write(rest[HALF:])

    def crawl(self):
        """Half of it at once, then 40 bytes a second."""
        rest = self.start()
        self.wfile.write(rest[:HALF])
        for byte in rest[HALF:]:
            self.wfile.write(bytes([byte]))
            if self.server.release.wait(0.025):
                return

    def steady(self):
        """All of it, in a second."""
        rest = self.start()
        for at in range(0, len(rest), len(BODY) // 20):
            self.wfile.write(rest[at : at + len(BODY) // 20])
            self.server.release.wait(0.05)

    def cut(self):
        rest = self.start()
        self.wfile.write(rest[: len(rest) // 2])

    def cut_once(self):
        self.cut() if len(self.server.log) == 1 else self.good()

    def reset(self):
        self.cut()
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def chunked(self, end=b"0\r\n\r\n"):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        body = BODY if end else BODY[:HALF]
        self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) + end)

    def chunked_cut(self):
        self.chunked(end=b"")

    def unannounced_cut(self):
        """No length, so that only the known size can tell that half is missing."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(BODY[:HALF])

    def misfit(self):
        """Answers a range with another one."""
        if not self.headers.get("Range"):
            return self.good()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes 7-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY) - 7))
        self.end_headers()
        self.wfile.write(BODY[7:])

    def half(self):
        """Half of it, of which some is on the disk on return."""
        rest = self.start()
        self.wfile.write(rest[:HALF])
        part = self.server.target.with_name("a.tgz.part")
        while part.stat().st_size <= 1234:
            self.server.release.wait(0.01)

    def interrupted(self):
        """Half of it, and Ctrl-C."""
        self.half()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def killed(self):
        """Half of it, and SIGKILL to the process that asked."""
        self.half()
        self.server.process.kill()

    def packed(self):
        """An archive that can be extracted, as soon as it may be sent."""
        self.server.go.wait()
        self.wfile.write(self.start(self.server.archive))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server, its log, and get(*manners): a download that tries them in this order."""
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.log, server.release = [], threading.Event()
    server.go = threading.Event()
    server.target = target = tmp_path / "root" / "a.tgz"
    host = f"127.0.0.1:{server.server_port}"
    monkeypatch.setattr(net, "TIMEOUT", 5)
    monkeypatch.setattr(net, "PATIENCE", 0.15)
    for rate in ("FAST", "MIN_RATE"):
        monkeypatch.setattr(net, rate, 1_000)

    def get(*manners):
        urls = [m if "//" in m else f"http://{host}/{m}" for m in manners]
        download(urls, target, md5=MD5, size=len(BODY))

    def leave(part):
        target.parent.mkdir()
        target.with_name("a.tgz.part").write_bytes(part)

    def files():
        return {path.name: path.read_bytes() for path in target.parent.iterdir()}

    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield SimpleNamespace(
        get=get,
        leave=leave,
        files=files,
        log=server.log,
        host=host,
        target=target,
        server=server,
    )
    server.release.set()
    server.go.set()
    server.shutdown()
    server.server_close()
    thread.join()


def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}/a.tgz"


def from_byte(first):
    return f"bytes={first}-"


@pytest.mark.parametrize("manner", ["good", "chunked", "steady"])
def test_download(site, capsys, manner):
    site.get(manner)
    assert site.files() == {"a.tgz": BODY}
    assert site.log == [(manner, None)]
    out, err = capsys.readouterr()
    assert out == f"downloading a.tgz from {site.host} …\n" and err == ""


def test_what_is_there_is_not_downloaded(site):
    site.leave(BODY)
    site.get("good")
    site.get("good")
    assert site.files() == {"a.tgz": BODY} and site.log == []


# What each failing mirror is asked for, and where the next one goes on; None: from zero.
FAILURES = {
    "missing": ("HTTP 404 Not Found", [None], None),
    "silent": ("no answer within 1 s", [None], None),
    "hang_up": ("Remote end closed", [None], None),
    "empty": ("cut off after 0 bytes", [None], None),
    "stall": ("no byte for 1 s", [None], HALF),
    "crawl": (r"only [\d,]+ bytes/s", [None], "any"),
    "cut": ("cut off after", [None, HALF, HALF * 3 // 2], HALF * 7 // 4),
    "wrong": (f"MD5 is not {MD5}", [None], None),
    "bigger": ("announces 1024001 bytes instead of 1024000", [None], None),
}


@pytest.mark.parametrize("manner", FAILURES)
def test_next_mirror(site, capsys, monkeypatch, manner):
    reason, asked, then = FAILURES[manner]
    if "1 s" in reason:
        monkeypatch.setattr(net, "TIMEOUT", 1)
    site.get(manner, "good")
    assert site.files() == {"a.tgz": BODY}
    asked = [(manner, n and from_byte(n)) for n in asked]
    assert site.log[:-1] == asked
    last = site.log[-1]
    if then == "any":
        assert last[0] == "good" and int(last[1][6:-1]) > HALF
    else:
        assert last == ("good", then and from_byte(then))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("downloading a.tgz from") for line in lines) == 2
    assert (
        len([line for line in lines if re.search(f"given up: .*{reason}", line)]) == 1
    )


def test_slow_mirror_is_taken_where_there_is_no_other(site, monkeypatch):
    monkeypatch.setattr(net, "FAST", 2_000_000)
    site.get("steady", "missing")
    assert site.files() == {"a.tgz": BODY}
    assert [manner for manner, _ in site.log] == ["steady", "missing", "steady"]
    assert int(site.log[-1][1][6:-1]) > 0  # and goes on from what there was


def test_what_came_whole_is_taken_however_slowly_it_came(monkeypatch):
    monkeypatch.setattr(net, "PATIENCE", 0)
    response = SimpleNamespace(read1=lambda most: b"all")
    assert list(net.blocks(response, 3, rate=10**12)) == [b"all"]


def test_progress_is_told_in_lines_where_nobody_sees_a_bar(site, capsys, monkeypatch):
    monkeypatch.setattr(net, "TELL", 0)
    site.get("steady")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("downloading ")
    assert set(lines[1:]) == {"0 of 1 MB", "1 of 1 MB"}


def test_certificate_that_cannot_be_checked_is_said_with_the_remedy(
    site, capsys, monkeypatch
):
    def refuse(*_, **__):
        error = ssl.SSLCertVerificationError("failed")
        error.verify_message = "unable to get local issuer certificate"
        raise URLError(error)

    monkeypatch.setattr(net, "urlopen", refuse)
    with pytest.raises(DownloadError, match="issuer.*Install Certificates.*SSL_CERT"):
        site.get("good")


@pytest.mark.parametrize("manner", ["chunked_cut", "unannounced_cut"])
def test_cut_off_where_no_size_is_announced(site, manner):
    site.get(manner, "good")
    assert site.files() == {"a.tgz": BODY}
    assert [name for name, _ in site.log] == [manner] * 3 + ["good"]
    assert [asked for _, asked in site.log] == [None] + [from_byte(HALF)] * 3


def test_reset_connection(site, capsys):
    # How many bytes arrive before the reset, and so the number of retries, is open.
    site.get("reset", "good")
    assert site.files() == {"a.tgz": BODY}
    assert {manner for manner, _ in site.log} == {"reset", "good"}
    assert "given up: cut off after" in capsys.readouterr().out


def test_addresses_that_all_fail_are_told_with_their_reasons(site):
    with pytest.raises(DownloadError) as caught:
        site.get("missing", closed_port(), "bigger", "wrong")
    text = str(caught.value)
    for part in ("HTTP 404", "Connection refused", "announces", "MD5 is not"):
        assert part in text
    assert text.count(site.host) == 3 and "\n" not in text
    assert f"into the folder {site.target.parent}" in text
    assert site.files() == {}


def test_download_that_is_cut_off_keeps_its_part(site):
    with pytest.raises(DownloadError, match="cut off after"):
        site.get("cut")
    assert site.files() == {"a.tgz.part": BODY[: HALF * 7 // 4]}


@pytest.mark.parametrize("part", [BODY[:1234], WRONG[:1234], WRONG + b"more"])
def test_server_that_ignores_ranges(site, part):
    site.leave(part)
    site.get("no_range")
    assert site.files() == {"a.tgz": BODY} and len(site.log) == 1


def test_server_that_gives_another_range(site, capsys):
    site.leave(BODY[:1234])
    site.get("misfit")
    assert site.files() == {"a.tgz": BODY}
    assert site.log == [("misfit", from_byte(1234)), ("misfit", None)]
    assert "wrong MD5" not in capsys.readouterr().out


def test_part_of_full_size_with_wrong_bytes(site):
    site.leave(WRONG)
    site.get("good")
    assert site.files() == {"a.tgz": BODY}
    assert site.log == [("good", from_byte(len(BODY))), ("good", None)]


def test_wrong_part_costs_one_more_try_from_zero(site, capsys):
    site.leave(WRONG[:1234])
    site.get("good")
    assert site.files() == {"a.tgz": BODY}
    assert site.log == [("good", from_byte(1234)), ("good", None)]
    assert "once more from the start" in capsys.readouterr().out


def test_wrong_file_is_not_retried_without_end(site):
    site.leave(BODY[:1234])
    with pytest.raises(DownloadError, match="MD5"):
        site.get("wrong")
    assert site.log == [("wrong", from_byte(1234)), ("wrong", None)]
    assert site.files() == {}


def test_wrong_file_is_restarted_once(site):
    site.leave(BODY[:1234])
    with pytest.raises(DownloadError, match="MD5"):
        site.get("wrong_and_cut")
    assert [asked for _, asked in site.log] == [from_byte(1234), None, from_byte(HALF)]
    assert site.files() == {}


def test_wrong_target_is_said_and_replaced(site, capsys):
    site.target.parent.mkdir()
    site.target.write_bytes(WRONG)
    site.get("good")
    assert "a.tgz is damaged or another file" in capsys.readouterr().out
    assert site.files() == {"a.tgz": BODY}


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to a thread")
def test_interrupt_leaves_one_part_to_go_on_from(site):
    site.leave(BODY[:1234])
    with pytest.raises(KeyboardInterrupt):
        site.get("interrupted")
    [(name, part)] = site.files().items()
    assert name == "a.tgz.part" and BODY.startswith(part) and len(part) > 1234
    site.get("good")
    assert site.files() == {"a.tgz": BODY}
    assert site.log[1:] == [("good", from_byte(len(part)))]


# Several processes. Each does what a user's would, in a dataset of two files.


LOAD = """
import sys
from pathlib import Path
from helpers import dataset, download

root, md5, size, *urls = sys.argv[1:]
download.ARCHIVE_NAME, download.ARCHIVE_URLS = "a.tgz", urls
download.ARCHIVE_MD5, download.ARCHIVE_BYTES = md5, int(size)
download.TIMEOUT = 300  # what starts last may be much later than what starts first

def read_batches(root):
    there = root / "cifar-10-batches-py"
    return [*there.iterdir()] if there.exists() else None

def extract(*where, extract=download.extract):
    print("extracting", flush=True)
    extract(*where)

dataset.read_batches, download.extract = read_batches, extract
print(len(dataset.load_cifar10(root)), flush=True)
"""
BATCHES = {f"cifar-10-batches-py/{name}": name.encode() for name in ("one", "two")}


def start_load(site, body, *manners):
    md5, size = hashlib.md5(body).hexdigest(), str(len(body))
    urls = [f"http://{site.host}/{manner}" for manner in manners]
    root = str(site.target.parent)
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, root, md5, size, *urls],
        cwd=Path(net.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_three_processes_make_one_download(site, tmp_path):
    body = site.server.archive = pack(tmp_path / "packed", files=BATCHES).read_bytes()
    processes = [start_load(site, body, "packed") for _ in range(3)]
    # Nothing is sent before each has said what it does.
    first = sorted(process.stdout.readline() for process in processes)
    site.server.go.set()
    rest = [process.communicate() for process in processes]
    assert first == [
        f"downloading a.tgz from {site.host} …\n",
        *["waiting for another process to download a.tgz …\n"] * 2,
    ]
    assert sorted(rest) == [("2\n", "")] * 2 + [("extracting\n2\n", "")]
    assert site.log == [("packed", None)]
    found = tree(site.target.parent)
    found.pop("a.tgz.lock", None)  # Windows removes it
    assert found == BATCHES | {"a.tgz": body}


def test_killed_download_is_resumed_at_once(site, capsys):
    process = site.server.process = start_load(site, BODY, "killed")
    assert process.communicate()[1] == "" and process.returncode
    part = site.files()["a.tgz.part"]
    assert BODY.startswith(part) and 1234 < len(part) < len(BODY)
    with locked(site.target):
        site.get("good")
    assert site.target.read_bytes() == BODY
    assert site.log == [("killed", None), ("good", from_byte(len(part)))]
    assert capsys.readouterr().out == f"downloading a.tgz from {site.host} …\n"


def test_archive_is_the_one_that_torchvision_reads():
    assert net.ARCHIVE_URLS[0] == CIFAR10.url
    assert net.ARCHIVE_MD5 == CIFAR10.tgz_md5
    assert net.ARCHIVE_NAME == CIFAR10.filename
    assert net.ARCHIVE_BYTES == 170_498_071  # of https://www.cs.toronto.edu/~kriz/


def test_lock_is_free_after_an_interruption(site):
    with pytest.raises(KeyboardInterrupt), locked(site.target):
        raise KeyboardInterrupt
    with FileLock(f"{site.target}.lock", blocking=False):
        pass


@pytest.fixture
def load(site, tmp_path, monkeypatch):
    """What LOAD does, here."""
    site.server.archive = pack(tmp_path / "packed", files=BATCHES).read_bytes()
    site.server.go.set()
    monkeypatch.setattr(net, "ARCHIVE_NAME", "a.tgz")
    monkeypatch.setattr(net, "ARCHIVE_URLS", [f"http://{site.host}/packed"])
    md5 = hashlib.md5(site.server.archive).hexdigest()
    monkeypatch.setattr(net, "ARCHIVE_MD5", md5)
    monkeypatch.setattr(net, "ARCHIVE_BYTES", len(site.server.archive))
    there = site.target.parent / "cifar-10-batches-py"
    monkeypatch.setattr(dataset, "read_batches", lambda root: there.exists() or None)
    return lambda: dataset.load_cifar10(site.target.parent)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_file_system_that_cannot_lock_is_said_and_does(site, load, monkeypatch, code):
    fcntl = pytest.importorskip("fcntl")

    monkeypatch.setattr(fcntl, "flock", raising(OSError(code, os.strerror(code))))
    with pytest.warns(UserWarning) as said:
        assert load() is True
    [warning] = said
    start = f"{site.target.parent} can't be locked ({os.strerror(code)}): let one "
    assert str(warning.message).startswith(start) and warning.filename == __file__
    assert BATCHES.items() <= tree(site.target.parent).items()


class FullFile(io.FileIO):
    def write(self, block):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_disk_full(site, monkeypatch):
    def open_full(path, mode, **options):
        kind = FullFile if "+" in mode else builtins.open
        return kind(path, mode, **options)

    monkeypatch.setattr(net, "open", open_full, raising=False)
    with pytest.raises(OSError, match=r"cannot take a.tgz .*1\.0 MB") as caught:
        site.get("good", "no_range")
    assert caught.value.errno == errno.ENOSPC and len(site.log) == 1
    assert not isinstance(caught.value, DownloadError)
    assert str(site.target.parent) in str(caught.value)


def test_disk_too_small(site, monkeypatch):
    site.leave(BODY[:HALF])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=HALF - 1))
    with pytest.raises(OSError, match=r"1\.0 MB") as caught:
        site.get("good")
    assert caught.value.errno == errno.ENOSPC and site.log == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=HALF))
    site.get("good")


# Extraction. The archive lies outside the folder, so that the folder's content is clear.


FILES = {"top/one": b"1" * 5000, "top/sub/two": b"2" * 70_000}


def pack(path, files=FILES):
    """A gzipped tar of these files."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "outer" / "data"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def archive(tmp_path):
    return pack(tmp_path / "a.tgz")


def tree(folder):
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_untouched(folder):
    assert list(folder.iterdir()) == []
    assert list(folder.parent.iterdir()) == [folder]


def test_extract(archive, folder, monkeypatch):
    rename = os.rename

    def within(source, goal):
        assert folder in source.parents  # one file system, so one step
        rename(source, goal)

    monkeypatch.setattr(os, "rename", within)
    extract(archive, folder, "top")
    assert tree(folder) == FILES
    assert [path.name for path in folder.iterdir()] == ["top"]


def test_old_folder_is_replaced_and_kept_beside(archive, folder):
    (folder / "top").mkdir()
    for number, kept in enumerate(["top.replaced", "top.replaced1"]):
        (folder / "top/extra").write_bytes(b"%d" % number)
        with pytest.warns(UserWarning, match=rf"what was in .*top is in .*{kept} now"):
            extract(archive, folder, "top")
        found = {
            f"top/{name}": content for name, content in tree(folder / "top").items()
        }
        assert found == FILES
        assert (folder / kept / "extra").read_bytes() == b"%d" % number


def test_renaming_fails(archive, folder, monkeypatch):
    def fail(source, goal):
        code = errno.ENOENT if source == folder / "top" else errno.EACCES
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(PermissionError, match="cannot be extracted to .*accessible"):
        extract(archive, folder, "top")
    assert_untouched(folder)


def test_old_folder_that_was_moved_is_told_where_the_new_one_fails_too(
    archive, folder, monkeypatch
):
    def fail(source, goal):
        if source != folder / "top":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        rename(source, goal)

    (folder / "top").mkdir()
    rename = os.rename
    monkeypatch.setattr(os, "rename", fail)
    with (
        pytest.warns(UserWarning, match=r"what was in .*top is in .*top\.replaced now"),
        pytest.raises(PermissionError, match="cannot be extracted"),
    ):
        extract(archive, folder, "top")


def test_disk_full_while_extracting(archive, folder, monkeypatch):
    def copy_half(source, target, *args):
        target.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tarfile, "copyfileobj", copy_half)
    said = f"{re.escape(str(archive))} .*free space in {re.escape(str(folder))}"
    with pytest.raises(OSError, match=said) as caught:
        extract(archive, folder, "top")
    assert caught.value.errno == errno.ENOSPC
    assert_untouched(folder)
