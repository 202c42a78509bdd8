"""Zip archives of outside origin, read within bounds: no member takes more memory than its stated size.

Only stored and deflated members are read. A few kilobytes of the other methods can unpack to gigabytes at once, and
their decoders in Python's zipfile take no limit.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from unistep.data.names import brief

_PIECE = 1 << 20
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
_OTHERS = {zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "lzma", 93: "zstandard", 95: "xz"}
_MOST_MEMBERS = 4_000_000
_MOST_RATIO = 1040  # deflate reaches 1032


class ArchiveError(Exception):
    """The error for an archive or a member that cannot be read: the reason in one line."""


def open_archive(file: Path | io.BytesIO) -> zipfile.ZipFile:
    """Opens a zip archive.

    Raises:
        ArchiveError: it is none, or damaged.
    """
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # zipfile raises nearly every built-in exception on damaged files
        raise ArchiveError(_reason(error)) from error
    if len(archive.filelist) > _MOST_MEMBERS:
        raise ArchiveError(f"it holds {len(archive.filelist):,} files, more than the {_MOST_MEMBERS:,} that are read")
    return archive


def check_member(member: zipfile.ZipInfo) -> None:
    """Refuses a member that cannot be unpacked, or whose size is a lie.

    Raises:
        ArchiveError: it is encrypted, packed by another method, or cannot unpack to the size that is stated.
    """
    if member.flag_bits & 0x1:
        raise ArchiveError("it is encrypted with a password; pack it without one")
    if member.compress_type not in _METHODS:
        method = _OTHERS.get(member.compress_type, f"method {member.compress_type}")
        raise ArchiveError(f"it is packed by {method}; pack it by deflate, as zip does")
    ratio = _MOST_RATIO if member.compress_type == zipfile.ZIP_DEFLATED else 1
    if member.file_size > member.compress_size * ratio + 64:
        raise ArchiveError(f"{member.compress_size:,} bytes cannot unpack to the {member.file_size:,} that are stated")


def unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int | None = None) -> bytes:
    """Unpacks a member, or its beginning.

    Args:
        archive: archive.
        member: member of it.
        limit: largest number of bytes, from the start; None is all, with their checksum.

    Raises:
        ArchiveError: it is damaged, encrypted or packed by another method.
    """
    check_member(member)
    parts, left = [], member.file_size + 1 if limit is None else limit
    try:
        with archive.open(member) as file:
            while left > 0 and (piece := file.read(min(left, _PIECE))):
                parts.append(piece)
                left -= len(piece)
    except Exception as error:
        raise ArchiveError(_reason(error)) from error
    if limit is None and left != 1:
        raise ArchiveError("it is shorter than stated")
    return b"".join(parts)


def _reason(error: Exception) -> str:
    return brief(error) if str(error) else type(error).__name__
