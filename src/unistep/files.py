"""Files looked at before they are read, and written whole or not at all.

Reading a folder, a pipe or a device would block, never end, or raise an error that does not help.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unistep.errors import UserError

# The remedy for a file that a model folder lacks.
LAYOUT = "a model folder holds model_index.json, unet/ and scheduler/"

_HEAD_BYTES = 512
# Beginnings of pages in lower case; storage services answer errors in XML.
_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<!--", b"<script", b"<title", b"<meta")


# What a full disk, a full quota and a limit on the size of files raise.
_FULL = {
    errno.ENOSPC: "free the disk",
    getattr(errno, "EDQUOT", errno.ENOSPC): "free the disk, or raise the quota",
    errno.EFBIG: "raise the limit on the size of files",
}


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it at the end; after an error nothing new is left there.

    Folders above `path` are made.

    Args:
        path: file to be written.
        durable: whether the file is on the disk before it has its name, so that it outlives a power cut too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        _sync(folder)


def is_full(error: OSError) -> bool:
    """Whether an error is that of a place without more room."""
    return error.errno in _FULL


def write_error(path: Path, error: OSError, remedy: str, *, need: int | None = None) -> UserError:
    """The error of a file or folder that cannot be written.

    Args:
        path: file or folder.
        error: error of the system.
        remedy: remedy where there is room enough; after the room is made where there is not.
        need: number of bytes to be written; None where it is unknown.
    """
    reason = error.strerror or str(error).partition("\n")[0]
    if not is_full(error):
        return UserError(f"cannot write {path}: {reason}", remedy)
    room = [] if need is None else [f"{_megabytes(need)} needed"]
    with contextlib.suppress(OSError):
        above = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
        room.append(f"{_megabytes(shutil.disk_usage(above).free)} free")
    shown = f" ({', '.join(room)})" if room else ""
    return UserError(f"cannot write {path}: {reason}{shown}", f"{_FULL[error.errno or 0]} and {remedy}")


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def check_regular_file(
    path: Path, remedy: str, *, most_bytes: int | None = None, what: str | None = "the file itself"
) -> None:
    """Passes where `path` is a file that can be read, or a link to one.

    Args:
        path: path to be read.
        remedy: end of the message for one that is missing or not a file.
        most_bytes: largest size that makes sense.
        what: content that the file should have, for the message on a web page in its place; None takes what stands in
            for a file as well.

    Raises:
        UserError: it is missing, a folder, a device, unreadable, too large, or the stand-in of a file.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        if path.is_symlink():
            raise UserError(f"{path} is a link that leads to no file; {remedy}") from None
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise UserError(f"{path} is missing; {remedy}") from None
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); {remedy}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is {'a folder' if stat.S_ISDIR(status.st_mode) else 'no file'}; {remedy}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read (Permission denied); change its permissions")
    if most_bytes is not None and status.st_size > most_bytes:
        raise UserError(f"{path} has {status.st_size:,} bytes, more than the {most_bytes:,} that make sense; {remedy}")
    if what is not None:
        check_no_stand_in(path, what)


def check_no_stand_in(path: Path, what: str = "the file itself") -> None:
    """Passes where a file does not stand in for another one, whatever else it is.

    Args:
        path: the file; one that cannot be read passes, as its reader gives the reason.
        what: content that the file should have, for the message on a web page.

    Raises:
        UserError: the file is a git-lfs pointer, or a page that a server sent in place of the file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return
    if found := stand_in(head, what):
        raise UserError(f"{path} {found}")


def stand_in(head: bytes, what: str = "the file itself") -> str:
    """Returns the reason why a file only stands in for another one, with the remedy; empty for any other file.

    Args:
        head: first bytes of the file, 64 or more.
        what: content that the file should have.

    Returns:
        The end of a sentence that begins with the file's name.
    """
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"version https://git-lfs", b"version https://hawser")):
        return "is a git-lfs pointer and not the file itself; fetch it with: git lfs pull"
    if start.startswith(_PAGE):
        return f"cannot be read: it is a web page and not {what}; the download went wrong, fetch it again"
    return ""
