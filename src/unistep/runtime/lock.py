"""A lock on a folder: one process at a time works in it.

The system holds the lock, on the file `.lock` of the folder, and releases it when the process dies, whatever it dies
of. The content of the file is for people alone.
"""

import contextlib
import datetime
import errno
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from unistep.errors import UserError
from unistep.files import write_error

try:
    import fcntl
except ImportError:  # not POSIX: two processes in one folder then do not notice each other
    fcntl = None

LOCK = ".lock"
"""Name of the file in the folder."""

_MOST_BYTES = 1000
# A look at the lock holds it for a moment, which whoever takes it waits for.
_LOOKS, _MOMENT = 5, 0.01  # seconds
# What a locked file raises, and what a file system without locks raises.
_TAKEN = (errno.EACCES, errno.EAGAIN)


class FolderLock:
    """The lock of a folder; released by leaving the context, and by the end of the process.

    Args:
        work: work of the holder, as a verb: "train".
    """

    def __init__(self, work: str) -> None:
        self.work = work
        self._path: Path | None = None
        self._file: int | None = None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self, folder: Path) -> None:
        """Takes the lock of a folder, which must exist; does nothing where it has it.

        Raises:
            UserError: another process has it, or the folder cannot be written to.
        """
        path = folder.resolve() / LOCK
        if self._path == path:
            return
        self.release()
        while True:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            except OSError as error:
                raise write_error(path, error, "make the folder writable") from None
            if not _taken_soon(file):
                holder = _holder(file)
                os.close(file)
                raise UserError(
                    f"{folder} is in use: {holder} is at work in it", f"wait for it, or stop it before you {self.work}"
                )
            if _is_at(file, path):  # else its holder has removed it between the two calls
                break
            os.close(file)
        self._path, self._file = path, file
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now, "work": self.work})
        with contextlib.suppress(OSError):  # on a full disk too the lock is held
            os.ftruncate(file, 0)
            os.pwrite(file, text.encode() + b"\n", 0)

    def release(self) -> None:
        """Gives the lock back and removes its file."""
        if self._path is None or self._file is None:
            return
        with contextlib.suppress(OSError):
            if _is_at(self._file, self._path):
                self._path.unlink()
        os.close(self._file)
        self._path = self._file = None


def at_work(folder: Path) -> dict[str, Any] | None:
    """Facts that the process at work in a folder has written about itself: `pid`, `host`, `since` and `work`.

    Nothing is written, and the lock is not taken from anybody. A lock that cannot be examined counts as held.

    Args:
        folder: folder that may be locked.

    Returns:
        The facts, empty where it has written none yet; None where no process holds the lock.
    """
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return None
    except OSError:
        return {} if (folder / LOCK).is_file() else None
    try:
        free = _taken_by_us(file, shared=True)
        return None if free else _content(file)
    finally:
        os.close(file)


def _taken_soon(file: int) -> bool:
    """Whether the lock of a file is ours from now on, if need be after others have looked at it."""
    for _ in range(_LOOKS):
        if _taken_by_us(file):
            return True
        time.sleep(_MOMENT)
    return False


def _taken_by_us(file: int, *, shared: bool = False) -> bool:
    """Whether the lock of a file is ours from now on."""
    if fcntl is None:
        return not shared or _is_of_dead(file)
    for lock in (fcntl.flock, fcntl.lockf):  # some network file systems have the second alone
        try:
            lock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            continue
        return True
    return _is_of_dead(file)


def _is_of_dead(file: int) -> bool:
    """Whether a file names no other process that lives; without locks its content is all there is."""
    held = _content(file)
    if held.get("host") != socket.gethostname() or held.get("pid") == os.getpid():
        return True
    try:
        os.kill(int(held["pid"]), 0)
    except PermissionError:
        return False
    except (OSError, KeyError, TypeError, ValueError, OverflowError):
        return True
    return False


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _content(file: int) -> dict[str, Any]:
    try:
        value = json.loads(os.pread(file, _MOST_BYTES, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _holder(file: int) -> str:
    held = _content(file)
    if not {"pid", "host", "since"} <= held.keys():
        return "another process"
    return f"process {held['pid']} on {held['host']}, since {held['since']},"
