"""Tar archives of outside origin, listed within bounds: nothing is extracted, nothing lies beyond the end of the file.

Python's tarfile follows links and sparse maps, and takes four times as long to list a million members; here a member is
a name and a place in the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
"""Bytes of a header, and the multiple that members are padded to."""

FILE, LINK, SPARSE, SPECIAL = "file", "link", "sparse", "special"
"""Kinds of members. Folders are not listed."""

_WINDOW, _SMALL = 1 << 16, 1 << 14
_MOST_EXTENDED = 1 << 20  # bytes of a header that extends the next one
_KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"1": LINK, b"2": LINK, b"S": SPARSE}
_EMPTY = bytes(BLOCK)


class TarError(Exception):
    """The error for an archive that is damaged: the reason in one line."""


class Member(NamedTuple):
    """A member of an archive.

    Args:
        name: name as it is spelled there.
        start: first byte of its content.
        size: bytes of its content.
        kind: one of FILE, LINK, SPARSE and SPECIAL.
    """

    name: str
    start: int
    size: int
    kind: str


def header(name: str, size: int) -> bytes:
    """The header of a file that is written here: no times and no owners, so that the same images are the same bytes.

    Args:
        name: name of ASCII, up to 100 bytes.
        size: bytes of its content.
    """
    fields = name.encode("ascii").ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
    fields += b"%011o\0" % size + b"%011o\0" % 0 + b" " * 8 + b"0" + bytes(100) + b"ustar\0" + b"00"
    fields = fields.ljust(BLOCK, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def padding(size: int) -> bytes:
    """The bytes between a content of that size and the next header."""
    return bytes(-size % BLOCK)


END = bytes(2 * BLOCK)
"""End of an archive."""


def members(path: Path) -> Iterator[Member]:
    """Lists an archive, member by member.

    Args:
        path: the archive, not compressed.

    Raises:
        TarError: it is damaged or cut off; the members before that were given.
        OSError: it cannot be read.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        yield from _members(_Window(file))
    finally:
        os.close(file)


class _Window:
    """Reads a file at any place; where members are small, several headers with one call."""

    def __init__(self, file: int) -> None:
        self._file, self.length = file, os.fstat(file).st_size
        self._held, self._start, self.wide = b"", 0, True

    def read(self, start: int, size: int) -> bytes:
        offset = start - self._start
        if 0 <= offset and offset + size <= len(self._held):
            return self._held[offset : offset + size]
        self._held = os.pread(self._file, max(size, _WINDOW if self.wide else size), start)
        self._start = start
        return self._held[:size]


def _members(window: _Window) -> Iterator[Member]:
    place, name, size, sparse = 0, "", -1, False
    if window.length == 0:
        raise TarError("it is empty")
    while True:
        header = window.read(place, BLOCK)
        if len(header) < BLOCK:
            raise TarError(f"it is cut off after {window.length:,} bytes")
        if header == _EMPTY:
            return
        _check_sum(header, place)
        kind, own = header[156:157], _number(header[124:136], place)
        size = own if size < 0 else size
        start = place + BLOCK
        if start + size > window.length:
            raise TarError(
                f"it is cut off: the member at byte {place:,} goes on to {start + size:,} of {window.length:,}"
            )
        place = start + -(-size // BLOCK) * BLOCK
        if kind in (b"x", b"g", b"L", b"K"):
            if size > _MOST_EXTENDED:
                raise TarError(f"a header of {size:,} bytes is at byte {start - BLOCK:,}")
            content = window.read(start, size)
            size = -1
            if kind == b"L":
                name = _text(content)
            elif kind == b"x":
                found = _records(content, start)
                name = found.get("GNU.sparse.name") or found.get("path") or name
                sparse = sparse or any(key.startswith("GNU.sparse") for key in found)
                size = _decimal(found["size"], start) if "size" in found else -1
            continue
        name = name or _name(header)
        window.wide = size < _SMALL
        if kind != b"5" and not (name.endswith("/") and size == 0):
            yield Member(name, start, size, SPARSE if sparse else _KINDS.get(kind, SPECIAL))
        name, size, sparse = "", -1, False


def _check_sum(header: bytes, place: int) -> None:
    stated = _number(header[148:156], place)
    total = sum(header) - sum(header[148:156]) + 8 * 32
    if stated != total and stated != total - 256 * sum(byte > 127 for byte in header):  # as old writers summed
        raise TarError(f"the header at byte {place:,} is damaged" if place else "it begins with no tar header")


def _number(field: bytes, place: int) -> int:
    if field[0] & 0x80:  # GNU's form for large numbers; a negative one has 0xff
        value = int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    else:
        try:
            value = int(field.split(b"\0", 1)[0].strip() or b"0", 8)
        except ValueError:
            value = -1
    if value < 0:
        raise TarError(f"the header at byte {place:,} is damaged" if place else "it begins with no tar header")
    return value


def _decimal(text: str, place: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise TarError(f"the header at byte {place:,} is damaged")
    return int(text)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _records(content: bytes, place: int) -> dict[str, str]:
    """The records `LENGTH KEY=VALUE` of an extended header."""
    found: dict[str, str] = {}
    while content.strip(b"\0"):
        digits, space, _ = content[:20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = content[len(digits) + 1 : length - 1]
        key, equals, value = record.partition(b"=")
        if not len(digits) + 1 < length <= len(content) or not equals:
            raise TarError(f"the header at byte {place:,} is damaged")
        found[key.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        content = content[length:]
    return found
