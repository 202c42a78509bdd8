"""One process at a time works in a folder."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from unistep.errors import UserError
from unistep.runtime import lock as module
from unistep.runtime.lock import LOCK, FolderLock, at_work


def test_the_second_is_refused_until_the_first_is_done(tmp_path):
    first, second = FolderLock("train"), FolderLock("train")
    with first:
        first.acquire(tmp_path)
        first.acquire(tmp_path)  # it has it
        words = f"is in use: process {os.getpid()} on {socket.gethostname()}, since .* before you train$"
        with pytest.raises(UserError, match=words) as refused:
            second.acquire(tmp_path)
        assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    with second:
        second.acquire(tmp_path)
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_what_a_dead_process_left_is_taken(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from unistep.runtime.lock import FolderLock;"
        "FolderLock('train').acquire(Path(sys.argv[1])); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    assert (tmp_path / LOCK).exists()
    with FolderLock("train") as lock:
        lock.acquire(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 5000, b'{"pid": 1}', b"[]"])
def test_a_holder_that_gives_no_name(tmp_path, content):
    with FolderLock("train") as first, FolderLock("train") as second:
        first.acquire(tmp_path)
        (tmp_path / LOCK).write_bytes(content)
        with pytest.raises(UserError, match="is in use: another process is at work in it"):
            second.acquire(tmp_path)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """A process of this machine that lives is respected; what else the file holds is not."""

    class NoLocks:
        LOCK_EX = LOCK_NB = 0

        @staticmethod
        def flock(file, how):
            raise OSError(95, "Operation not supported")

        lockf = flock

    monkeypatch.setattr(module, "fcntl", NoLocks)
    held = {"host": socket.gethostname(), "since": "noon"}
    parent = os.getppid()
    for pid, taken in ((parent, True), (2**22 + 1, False), ("x", False), (10**40, False), (os.getpid(), False)):
        (tmp_path / LOCK).write_text(json.dumps(held | {"pid": pid}))
        with FolderLock("train") as lock:
            if taken:
                with pytest.raises(UserError, match=f"process {pid} on"):
                    lock.acquire(tmp_path)
            else:
                lock.acquire(tmp_path)


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"cannot write .*{LOCK}"):
        FolderLock("train").acquire(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_place_that_cannot_be_written(read_only):
    with pytest.raises(UserError, match=f"cannot write .*{LOCK}: Permission denied; make the folder writable"):
        FolderLock("train").acquire(read_only)


def test_a_look_at_the_lock_writes_nothing_and_takes_nothing(tmp_path):
    assert at_work(tmp_path) is None and at_work(tmp_path / "missing") is None
    with FolderLock("train") as lock:
        lock.acquire(tmp_path)
        found = at_work(tmp_path)
        assert found is not None and (found["pid"], found["work"]) == (os.getpid(), "train")
        (tmp_path / LOCK).write_bytes(b"\xff")
        assert at_work(tmp_path) == {}
    (tmp_path / LOCK).write_text("{}")  # of a process that was killed
    assert at_work(tmp_path) is None and (tmp_path / LOCK).read_text() == "{}"
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).mkdir()
    assert at_work(tmp_path) is None


def test_whoever_takes_the_lock_waits_for_a_look(tmp_path):
    """A look holds the lock for less than a moment."""
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / LOCK).write_text("{}")
    with (tmp_path / LOCK).open() as file, FolderLock("train") as lock:
        fcntl.flock(file, fcntl.LOCK_SH)
        timer = threading.Timer(0.01, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        timer.start()
        lock.acquire(tmp_path)
        timer.join()
