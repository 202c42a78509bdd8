"""PNG files without the parts that say nothing about the pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Of the parts that a reader may ignore: transparency, orientation, and the sign of an animation.
_KEPT = frozenset((b"tRNS", b"eXIf", b"acTL"))
# Texts in which programs put the orientation.
_TEXTS = frozenset((b"tEXt", b"zTXt", b"iTXt"))
_KEYWORDS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
_LARGEST_TEXT = 256 << 10


def without_metadata(content: bytes) -> bytes:
    """Returns a PNG without profiles, texts and other parts that change no pixel.

    The orientation may stand after the pixels; it is put before them, where it is found without decoding. What is cut
    off within a chunk, or is no chunk, is left as it is for the decoder to judge.

    Args:
        content: the file, or the first part of it.
    """
    before: list[bytes] = [SIGNATURE]
    pixels: list[bytes] = []
    end, changed = len(SIGNATURE), False
    for kind, start, end in chunks(content):
        chunk = content[start:end]
        if not _is_needed(kind, content, start + 8, end - 4):
            changed = True
        elif kind == b"IDAT" or (pixels and not _is_orientation(kind)):
            pixels.append(chunk)
        else:
            changed = changed or bool(pixels)
            before.append(chunk)
    return b"".join([*before, *pixels, content[end:]]) if changed else content


def chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields the kind of each whole chunk, and its start and end in the file."""
    position = len(SIGNATURE)
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        end = position + 12 + length
        if end > len(content):
            return
        yield content[position + 4 : position + 8], position, end
        position = end


def _is_orientation(kind: bytes) -> bool:
    return kind == b"eXIf" or kind in _TEXTS


def _is_needed(kind: bytes, content: bytes, start: int, end: int) -> bool:
    if not kind.isalpha() or kind[0] < 97 or kind in _KEPT:  # no chunk, or a critical one, or one that shows
        return True
    if kind not in _TEXTS or end - start > _LARGEST_TEXT:
        return False
    data = content[start:end]
    keyword, _, text = data.partition(b"\0")
    if keyword not in _KEYWORDS or (kind == b"iTXt" and text[:1] != b"\0"):  # not packed
        return False
    return kind != b"zTXt" or _unpacks_to_little(text[1:])


def _unpacks_to_little(packed: bytes) -> bool:
    stream = zlib.decompressobj()
    try:
        stream.decompress(packed, _LARGEST_TEXT)
    except zlib.error:
        return False
    return not stream.unconsumed_tail
