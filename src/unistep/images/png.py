"""Small images as PNG files, by the compression of the standard library alone.

A server answers with hundreds of small images a second. They are written in a half to a quarter of Pillow's time, since
rows are not filtered; the files are a quarter to a half larger, so that large images are better written by Pillow.

Source: PNG specification, third edition (W3C 2025), sections 5 and 11.
"""

import struct
import zlib
from functools import lru_cache

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2}  # by channels: grey, colour


def png_bytes(image: UInt8[Tensor, "C H W"]) -> bytes:
    """Returns a grey (C = 1) or colour (C = 3) image as a PNG file of 8 bits a channel.

    Args:
        image: pixels on any device.
    """
    channels, height, width = image.shape
    rows = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # each begins with the filter "none"
    rows[:, 1:] = image.cpu().numpy().transpose(1, 2, 0).reshape(height, -1)
    data = _chunk(b"IDAT", zlib.compress(rows.tobytes(), 1))
    return b"".join((_head(channels, height, width), data, _END))


@lru_cache(64)
def _head(channels: int, height: int, width: int) -> bytes:
    return _SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


_END = _chunk(b"IEND", b"")
