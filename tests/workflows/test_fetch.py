"""Fetching of datasets, from a server on this machine: it breaks off, lies, and knows no ranges."""

import errno
import gzip
import hashlib
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import unistep
from unistep.data.idx import open_idx
from unistep.data.published import PUBLISHED, SOURCES, Published, PublishedFile
from unistep.errors import UserError
from unistep.formats.hub import transfer
from unistep.workflows import fetch as fetching
from unistep.workflows.fetch import fetch

IMAGES = np.random.default_rng(0).integers(0, 256, (400, 20, 30), np.uint8)
CONTENT = gzip.compress(struct.pack(">HBB3I", 0, 8, 3, *IMAGES.shape) + IMAGES.tobytes(), 0, mtime=0)
NAME = "train-images-idx3-ubyte.gz"


class Server:
    """A server of one file, and what it was asked for.

    Attributes:
        content: bytes of the file.
        ranges: whether it sends the rest of a file.
        cuts: numbers of bytes after which the next answers break off.
        statuses: statuses of the next answers.
        asked: Range of each request; empty for none.
    """

    def __init__(self) -> None:
        self.content, self.ranges = CONTENT, True
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range", "")
                server.asked.append(wanted)
                if server.statuses:
                    self.send_error(server.statuses.pop(0))
                    return
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
                body = server.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
                self.end_headers()
                self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of our own, no proxies, and no waiting."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)
    monkeypatch.setattr(fetching, "TIMEOUT", 2.0)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def row(server: Server) -> Callable[..., Published]:
    def make(*mirrors: str, **changes: Any) -> Published:
        file = PublishedFile(NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
        readers = {"small": lambda folder, source: open_idx(folder / NAME, source)}
        return Published(
            "small", "Small, 2026", "a small dataset", 20, 1, 3, mirrors or (server.url,), (file,), readers
        )

    return make


def one_line(call: Callable[[], object], *words: str) -> str:
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert line.isprintable() and all(word in line for word in words), line
    return line


def left(dataset: Published) -> list[str]:
    return sorted(path.name for path in dataset.folder.iterdir()) if dataset.folder.is_dir() else []


def test_a_dataset_is_fetched_once_and_read(row, server):
    dataset = row()
    line = one_line(lambda: dataset.reader("small"), "small is not fetched yet", "unistep data fetch small")
    assert "./small" not in line
    found = fetch(dataset)
    assert (found.sources, found.num_bytes, left(dataset)) == (("small",), len(CONTENT), [NAME])
    assert found.files[0].read_bytes() == CONTENT and "a small dataset" in found.rows()[0][1]
    assert found.to_dict()["files"] == [str(dataset.folder / NAME)] and "small" in repr(found)
    reader = dataset.reader("small")
    np.testing.assert_array_equal(next(iter(reader.rows()))[:, 0], IMAGES)
    fetch(dataset)
    assert server.asked == [""]


def test_an_interrupted_download_goes_on(row, server):
    """In the same command, where the server breaks off."""
    server.cuts = [70_000, 60_000]
    fetch(row())
    assert server.asked[0] == "" and len(server.asked) == 3
    starts = [int(wanted[6:-1]) for wanted in server.asked[1:]]
    assert 0 < starts[0] <= 70_000 and starts[0] < starts[1] <= 130_000


def test_a_later_command_goes_on(row, server):
    dataset = row()
    server.cuts = [50_000, 0, 0]
    one_line(lambda: fetch(dataset), NAME, "127.0.0.1", "try again, which goes on where it stopped")
    assert left(dataset) == [f"{NAME}.part"]
    there = (dataset.folder / f"{NAME}.part").stat().st_size
    assert CONTENT[:there] == (dataset.folder / f"{NAME}.part").read_bytes() and there > 0
    one_line(lambda: dataset.reader("small"), "not fetched yet")
    fetch(dataset)
    assert server.asked[-1] == f"bytes={there}-" and left(dataset) == [NAME]


def test_a_server_without_ranges_sends_all_again(row, server):
    server.ranges, server.cuts = False, [90_000]
    dataset = row()
    fetch(dataset)
    assert (dataset.folder / NAME).read_bytes() == CONTENT and len(server.asked) == 2


def test_a_beginning_of_another_file_is_thrown_away(row, server):
    dataset = row()
    dataset.folder.mkdir(parents=True)
    for wrong in (b"x" * 1000, b"x" * len(CONTENT), CONTENT + b"x"):
        (dataset.folder / f"{NAME}.part").write_bytes(wrong)
        fetch(dataset)
        assert (dataset.folder / NAME).read_bytes() == CONTENT
        (dataset.folder / NAME).unlink()


def test_another_file_is_refused(row, server):
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    dataset = row()
    one_line(lambda: fetch(dataset), NAME, "its SHA-256 sum is not the official one")
    assert left(dataset) == []


@pytest.mark.parametrize("content", [CONTENT + b"more", CONTENT[:-5], b""])
def test_a_file_of_another_size_is_refused(row, server, content):
    server.content = content
    dataset = row()
    one_line(lambda: fetch(dataset), NAME, "bytes stated")
    assert NAME not in left(dataset)


def test_the_next_mirror(row, server):
    other = Server()
    try:
        other.content = b"x" * len(CONTENT)
        dataset = row("http://127.0.0.1:9/", other.url, server.url)
        fetch(dataset)
        assert (dataset.folder / NAME).read_bytes() == CONTENT and len(other.asked) == 1
    finally:
        other.close()


def test_no_network(row):
    dataset = row("http://127.0.0.1:9/", "http://127.0.0.1:19/")
    one_line(lambda: fetch(dataset), "127.0.0.1 cannot be reached", "download the file by other means")
    assert left(dataset) == []


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_statuses(row, server, status, asked):
    server.statuses = [status] * 5
    one_line(lambda: fetch(row()), f"answers with status {status}")
    assert len(server.asked) == asked


def test_a_server_that_is_busy_once(row, server):
    server.statuses = [503]
    fetch(row())


def test_a_silent_server(row, server, monkeypatch):
    monkeypatch.setattr(transfer, "SILENCE", 0.2)
    monkeypatch.setattr(transfer, "_within_time", lambda work, patient: (_ for _ in ()).throw(transfer.SilentError()))
    one_line(lambda: fetch(row()), "127.0.0.1 does not answer")


def test_a_full_disk(row, monkeypatch):
    dataset = row()
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    one_line(lambda: fetch(dataset), "0.2 MB are needed and 0.0 MB free", "XDG_CACHE_HOME")
    assert left(dataset) in ([], [f"{NAME}.part"])


def test_a_disk_that_fills_up(row, server, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(transfer, "read_file", full)
    dataset = row()
    one_line(lambda: fetch(dataset), "cannot write", "No space left", "XDG_CACHE_HOME")
    assert left(dataset) == []


def test_a_cache_that_cannot_be_written(row, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    one_line(lambda: fetch(row()), "cannot write")


def test_a_signal_keeps_what_came(row, server, monkeypatch):
    from unistep.runtime.interrupt import Interrupted

    def stop(url: str, headers: object, timeout: float, file: Any, size: int, show: Any) -> None:
        file.write(CONTENT[:5000])
        raise Interrupted(signal.SIGINT)

    dataset = row()
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "read_file", stop)
        with pytest.raises(Interrupted) as caught:
            fetch(dataset)
    assert "goes on where it stopped" in caught.value.__notes__[0]
    assert (dataset.folder / f"{NAME}.part").read_bytes() == CONTENT[:5000]
    fetch(dataset)
    assert server.asked == ["bytes=5000-"]


def test_a_file_that_was_changed(row):
    dataset = row()
    fetch(dataset)
    (dataset.folder / NAME).write_bytes(CONTENT[:-1] + b"x")
    one_line(lambda: dataset.reader("small"), "was changed", "unistep data fetch small")
    fetch(dataset)
    assert dataset.reader("small").fingerprint()


def test_names_that_are_not_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source, name in (("cifar10", "cifar10"), ("cifar10-test", "cifar10"), ("fashion-mnist-test", "fashion-mnist")):
        one_line(lambda source=source: unistep.open_dataset(source), source, f"unistep data fetch {name}")
    (tmp_path / "cifar10").mkdir()
    one_line(lambda: unistep.open_dataset("cifar10"), "./cifar10 is what is here by that name")
    one_line(lambda: unistep.open_dataset("cifar-10"), "did you mean cifar10?")
    one_line(lambda: unistep.fetch_dataset("cifar"), "cifar10, mnist, fashion-mnist")


def test_the_rows_of_the_table():
    assert list(PUBLISHED) == ["cifar10", "mnist", "fashion-mnist"]
    assert sorted(SOURCES) == ["cifar10", "cifar10-test", "fashion-mnist", "fashion-mnist-test"]
    for row in PUBLISHED.values():
        assert all(mirror.endswith("/") for mirror in row.mirrors) and row.mirrors[0].startswith("https://")
        assert all(len(file.sha256) == 64 for file in row.files)
