"""PNGs of 16 bits that are coloured or transparent: Pillow reads the upper byte of each value alone.

That is right where the values fill 16 bits. Of values that fill fewer, it would leave black; the lower bytes are then
read as well.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unistep.data.formats import open_image
from unistep.data.grey import GreyRange, scale
from unistep.data.png import SIGNATURE

_COLOURED = {2: 3, 4: 1, 6: 3}  # by the colour type: channels without that of the opacity
_DECIDED = 64  # upper bytes from here on are those of more than 14 bits
_KEPT = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def is_wide_png(content: bytes) -> bool:
    """Returns whether an image file, or its beginning, is a PNG of 16 bits that is coloured or transparent."""
    return content.startswith(SIGNATURE) and content[24:25] == b"\x10" and content[25:26] in (b"\2", b"\4", b"\6")


def range_of(content: bytes, image: Image.Image) -> GreyRange:
    """The range of the values of such a PNG, without those of its opacity.

    Args:
        content: the file.
        image: the file as Pillow opens it.
    """
    coloured = _COLOURED[content[25]]
    upper = int(np.asarray(image)[..., :coloured].max(initial=0))
    if upper >= _DECIDED:
        return GreyRange(upper << 8 | 255, False)
    values = _values(content)[..., :coloured]
    return GreyRange(int(values.max(initial=0)), not (values % 257).any())


def narrowed(content: bytes, image: Image.Image, bits: int | None) -> Image.Image:
    """The image of such a PNG with its range brought to 0 ... 255; as it is where the range is that of 16 bits.

    Args:
        content: the file.
        image: the file as Pillow opens it.
        bits: number of bits that count; None takes those of the image alone.
    """
    bits = range_of(content, image).bits if bits is None else bits
    if bits == 16:
        return image
    values, coloured = _values(content), _COLOURED[content[25]]
    pixels = scale(values, bits)
    if values.shape[-1] > coloured and values[..., coloured:].max(initial=0) >= 1 << bits:
        pixels[..., coloured:] = values[..., coloured:] >> 8  # the opacity fills 16 bits
    made = Image.fromarray(pixels)
    made.info = {key: value for key, value in image.info.items() if key in _KEPT}
    return made


def _values(content: bytes) -> NDArray[np.uint16]:
    """All values [H, W, C] of such a PNG."""
    if content[25] == 4:  # grey and opacity: bytes are laid out as those of four channels of 8 bits
        head = content[12:24] + b"\x08\x06" + content[26:29]
        content = content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]
        with open_image(content) as image:
            both = np.asarray(image).astype(np.uint16)
        return (both[..., 0::2] * 256 + both[..., 1::2]).astype(np.uint16)
    with open_image(content) as image:
        upper = np.asarray(image).astype(np.uint16)
    with open_image(content) as image:
        # The other byte order takes the lower byte of each value.
        image.tile = [tile._replace(args=tile.args.replace("16B", "16L")) for tile in image.tile]  # pyright: ignore
        return (upper * 256 + np.asarray(image)).astype(np.uint16)
