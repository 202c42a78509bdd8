"""Files of `torch.save`, looked through before torch reads them.

`torch.load(weights_only=True)` executes nothing, but it trusts the sizes in a file: keys of one hash take quadratic
time, keys of nested tuples exponential time, and a compressed zip becomes as large as it likes. Here the pickle in the
file is run with limits, by a stack machine that makes inert data of everything, and the zip around it is measured.
"""

import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unistep.errors import UserError
from unistep.pickle_machine import Class, Function, checked_key, run

_MAX_INSTRUCTIONS = 500_000
_MAX_ITEMS = 1_000_000
# One entry has 46 bytes and its name, and becomes an object of a kilobyte.
_MAX_DIRECTORY = 8_000_000
_MAX_PICKLE = 64_000_000
_END, _END64 = b"PK\x05\x06", b"PK\x06\x06"
_LONGEST_END = (1 << 16) + 22 + 76  # the longest comment, and both records
_DICTS = ("OrderedDict", "Counter", "defaultdict")


def check_torch_file(path: Path) -> set[tuple[str, str]]:
    """Passes where torch can read a file in time and memory that are in proportion to it.

    Args:
        path: a regular file.

    Returns:
        The classes and functions that the file names, by module and name.

    Raises:
        UserError: it is compressed, or is larger inside than outside, or its pickle is no plain data.
        Exception: it is damaged; of almost any kind.
    """
    names = _AnyName()
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            # Before torch 1.6: a number, the protocol, the machine, the object, and the names of its storages.
            for _ in range(5):
                _run(file, names)
            return names.seen
    with open_zip(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UserError(
                f"{path} is a compressed zip file, and torch writes none: it was packed again; fetch the original"
            )
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise UserError(f"{path}: its parts are larger than the file; it is damaged, fetch it again")
        for member in members:
            if member.filename.rpartition("/")[2].lower() == "data.pkl":  # torch does not mind the case
                if member.file_size > _MAX_PICKLE:
                    raise UserError(f"{path}: its data.pkl has {member.file_size:,} bytes, which no network needs")
                with archive.open(member) as stream:
                    _run(stream, names)
    return names.seen


def is_training_state(path: Path) -> bool:
    """Returns whether a file is what EDM's and ECT's code resumes training from: a whole network and an optimizer."""
    if path.name.startswith("training-state-"):
        return True
    try:
        with open_zip(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(name) as stream:
                content = stream.read(_MAX_PICKLE)
    except Exception:  # no zip, or a damaged one
        return False
    return b"torch_utils.persistence" in content and b"optimizer_state" in content


def open_zip(path: Path) -> zipfile.ZipFile:
    """Opens a zip file whose directory is of a size that makes sense.

    Raises:
        UserError: the directory is too large.
        Exception: the file is damaged; of several kinds.
    """
    if (size := _directory_bytes(path)) > _MAX_DIRECTORY:
        raise UserError(f"{path} is a zip file with a directory of {size:,} bytes, which no checkpoint has")
    return zipfile.ZipFile(path)


def _directory_bytes(path: Path) -> int:
    """The size of a zip file's directory: the largest that a record at its end claims."""
    with path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(0, length - _LONGEST_END))
        tail = file.read()
    sizes = [0]
    for record, form, place in ((_END, "<L", 12), (_END64, "<Q", 40)):
        for at in (tail.rfind(record), len(tail) - 22):
            if at >= 0 and tail[at:].startswith(record) and len(tail) >= at + place + struct.calcsize(form):
                (size,) = struct.unpack_from(form, tail, at + place)
                sizes.append(size)
    return max(size for size in sizes if size != 0xFFFFFFFF)  # which means: see the other record


def _run(stream: Any, names: "_AnyName") -> None:
    limits = {"max_instructions": _MAX_INSTRUCTIONS, "room": _MAX_ITEMS}
    run(stream, names, persistent=lambda pid: None, attributes=True, **limits)


def _dict(*args: Any) -> dict[Any, Any]:
    # A list of pairs is how Python 2 wrote them; a default dict has a function instead.
    pairs = args[0] if args and type(args[0]) is list else ()
    return {checked_key(key): value for key, value in pairs}


def _items(*args: Any) -> int:
    return sum(len(arg) for arg in args if type(arg) is list)


class _AnyName(Mapping[tuple[str, str], Any]):
    """A table in which every name stands for inert data: torch refuses those that it does not know.

    Attributes:
        seen: names that were looked up.
    """

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()

    def __getitem__(self, key: tuple[str, str]) -> Any:
        self.seen.add(key)
        module, name = key
        if module == "collections" and name in _DICTS:
            return Function(_dict, cost=_items)
        return Class(f"{module}.{name}")

    def __contains__(self, key: object) -> bool:
        return True

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(())

    def __len__(self) -> int:
        return 0
