"""The digest of an exported file: it finds damage that the format has no word for, and identifies the model.

The digest stands in the description, within the file that it is of. So it is computed with zeros in its place, over
every other byte of the file and of the files with its weights.
"""

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

from unistep.errors import UserError
from unistep.formats.exported.description import AGAIN

MARK = "unistep-sha256:"
"""Text before a digest."""

NO_DIGEST = MARK + "0" * 64
"""The entry of a description that is yet to be given its digest."""

_PIECE = 1 << 24


def digest_of(path: Path, others: Sequence[Path] = (), stated: str = "") -> str:
    """Returns the digest of an exported file in hexadecimal digits.

    Args:
        path: file with the description.
        others: files with its weights.
        stated: digest that the description states, with its mark; empty where it states none.

    Raises:
        UserError: the file is not the one that `stated` was computed for.
    """
    found = hashlib.sha256()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.rfind(stated.encode()) if stated else -1
        end = len(content)
        # The entry is counted with zeros, and it may not be cut.
        for start, stop in ((0, place), (place + len(stated), end)) if place >= 0 else ((0, end),):
            for piece in _pieces(start, stop):
                found.update(content[piece])
            if place >= 0 and stop == place:
                found.update(NO_DIGEST.encode())
    for other in others:
        with other.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    if stated and (place < 0 or found.hexdigest() != stated.removeprefix(MARK)):
        more = "".join(f" or {one.name}" for one in others)
        raise UserError(f"{path}{more} is damaged, or was changed since the export (its digest is another)", AGAIN)
    return found.hexdigest()


def stamp(path: Path, others: Sequence[Path] = ()) -> None:
    """Writes its digest into an exported file whose description has `NO_DIGEST`; a file without stays as it is.

    Args:
        path: file with the description.
        others: files with its weights.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.rfind(NO_DIGEST.encode())
    if place < 0:
        return
    found = digest_of(path, others)
    with path.open("r+b") as file:
        file.seek(place + len(MARK))
        file.write(found.encode())


def _pieces(start: int, stop: int) -> Iterator[slice]:
    for place in range(start, stop, _PIECE):
        yield slice(place, min(place + _PIECE, stop))
