"""Grey images of 16 bits, of which cameras and scanners often use 10, 12 or 14.

The range that counts is one of a whole dataset, and is one of 8, 10, 12, 14 and 16 bits: the smallest that holds every
value. One range for each image would brighten dark photographs differently from their neighbours, and one by the
largest value would depend on a single pixel. Values that are all multiples of 257 are 8 bits spread over 16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unistep.data.reader import BadImage

WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of grey images of more than 8 bits."""

_BITS = (8, 10, 12, 14, 16)
_SPREAD = 257


@dataclass(frozen=True)
class GreyRange:
    """The values of grey images of 16 bits.

    Args:
        highest: largest value of all images.
        spread: whether all values are multiples of 257.
    """

    highest: int = 0
    spread: bool = True

    @classmethod
    def of(cls, image: Image.Image) -> GreyRange:
        """The values of an image of one of `WIDE_MODES`.

        Raises:
            BadImage: they do not fit into 16 bits.
        """
        values = wide_values(image)
        return cls(int(values.max(initial=0)), not (values % _SPREAD).any())

    def __or__(self, other: GreyRange) -> GreyRange:
        return GreyRange(max(self.highest, other.highest), self.spread and other.spread)

    @property
    def bits(self) -> int:
        """Number of bits that count: 8, 10, 12, 14 or 16."""
        if self.spread:
            return _BITS[-1]
        return next(bits for bits in _BITS if self.highest < 1 << bits)

    @property
    def decided(self) -> bool:
        """Whether no further image can change the number of bits."""
        return self.highest >= 1 << _BITS[-2]


def wide_values(image: Image.Image) -> NDArray[np.uint16]:
    """The values of an image of one of `WIDE_MODES`.

    Raises:
        BadImage: they do not fit into 16 bits.
    """
    values = np.asarray(image)
    if values.dtype.itemsize > 2 and values.size and (values.min() < 0 or values.max() > 65535):
        raise BadImage("its pixels are integers of more than 16 bits")
    return values.astype(np.uint16, copy=False)


def to_8_bits(image: Image.Image, bits: int) -> Image.Image:
    """An image of one of `WIDE_MODES` with its range brought to 0 ... 255; mode `L`.

    Pillow's own conversion clips at 255 instead of scaling.

    Args:
        image: the image.
        bits: number of bits that count; larger values become white.
    """
    return Image.fromarray(scale(wide_values(image), bits))


def scale(values: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """Values of so many bits brought to 0 ... 255; larger ones become 255."""
    top = (1 << bits) - 1
    table = (np.minimum(np.arange(65536), top) * 255 + top // 2) // top
    return table.astype(np.uint8)[values]
