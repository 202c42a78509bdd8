"""Further pages and frames of image files, of which the first one is the image."""

from __future__ import annotations

import struct

from unistep.data.formats import open_image
from unistep.data.png import SIGNATURE, chunks
from unistep.data.quiet import quiet

_MOST_PAGES = 10_000
_STARTS = (b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", SIGNATURE)


def further_frames(content: bytes) -> int:
    """Number of pages of a TIFF, or frames of a GIF, PNG, WebP or AVIF, after the first; 0 where none can be counted.

    Args:
        content: the whole file.
    """
    if not content.startswith(_STARTS) and content[4:8] != b"ftyp":
        return 0
    try:
        if content.startswith(SIGNATURE):
            return _of_png(content)
        if content[:2] in (b"II", b"MM"):
            return _of_tiff(content)
        with quiet(), open_image(content) as image:
            return max(0, getattr(image, "n_frames", 1) - 1)
    except Exception:  # whatever a damaged file raises: its first image tells the fault
        return 0


def _of_png(content: bytes) -> int:
    for kind, start, _ in chunks(content):
        if kind == b"acTL":
            return max(0, struct.unpack_from(">I", content, start + 8)[0] - 1)
        if kind == b"IDAT":
            break
    return 0


def _of_tiff(content: bytes) -> int:
    """Follows the chain of directories; Pillow would read all that each of them holds."""
    order = "<" if content[:2] == b"II" else ">"
    is_big = struct.unpack_from(f"{order}H", content, 2)[0] == 43
    count_format, entry, offset_format = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    (offset,) = struct.unpack_from(order + offset_format, content, 8 if is_big else 4)
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) <= _MOST_PAGES:
        seen.add(offset)
        (count,) = struct.unpack_from(order + count_format, content, offset)
        position = offset + struct.calcsize(f"={count_format}") + count * entry
        if position >= len(content):
            break
        (offset,) = struct.unpack_from(order + offset_format, content, position)
    return max(0, len(seen) - 1)
