"""Files looked at before they are read, and written whole or not at all.

Reading a folder, a pipe or a device would block, never end, or raise an error that does not help.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unistep.errors import UserError

# The remedy for a file that a model folder lacks.
LAYOUT = "a model folder holds model_index.json, unet/ and scheduler/"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it at the end; after an error nothing new is left there.

    Folders above `path` are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_regular_file(path: Path, remedy: str, *, most_bytes: int | None = None) -> None:
    """Passes where `path` is a file that can be read, or a link to one.

    Args:
        path: path to be read.
        remedy: end of the message for one that is missing or not a file.
        most_bytes: largest size that makes sense.

    Raises:
        UserError: it is missing, a folder, a device, unreadable or too large.
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
