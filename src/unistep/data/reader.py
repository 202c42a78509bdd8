"""What every kind of source offers: labels, and blocks of prepared images in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""uint8 pixels; blocks of images are [N, C, H, W]."""

Shape = tuple[int, int, int]
"""Channels, height and width of every prepared image of a dataset."""


class BadImage(Exception):
    """One file cannot be read as an image; the text says why, on one line and without the file's name."""


@dataclass(frozen=True)
class Labels:
    """The class of each image of a source, from 0, and the names of the classes where it has names."""

    values: NDArray[np.int64]
    names: list[str] | None = None


@dataclass(frozen=True)
class Skipped:
    """An image left out: its position in the source and `name: reason`."""

    index: int
    text: str


@runtime_checkable
class Reader(Protocol):
    """A source of images, opened but not yet decoded. All its methods raise `UserError` for a fault of the source."""

    location: str
    """The source as the user wrote it, for messages."""

    def __len__(self) -> int:
        """Images in the source, the unreadable ones among them."""
        ...

    def labels(self) -> Labels | None:
        """The labels of all images, or None if the source has none."""
        ...

    def fingerprint(self) -> str:
        """A text that changes when the images do. It is cheap: it comes from names, sizes, times and checksums."""
        ...

    def shape(self, resolution: int | None, channels: int | None, skip_bad: bool) -> Shape:
        """The shape that all prepared images will have."""
        ...

    def blocks(self, shape: Shape, resolution: int | None, skipped: list[Skipped] | None) -> Iterator[Pixels]:
        """The prepared images, in order, a few at a time.

        Images that cannot be read are appended to `skipped`; where that is None, the first raises `UserError`.
        """
        ...
