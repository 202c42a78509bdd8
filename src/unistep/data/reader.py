"""The protocol of every kind of source: labels, and blocks of prepared images in order."""

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
    """The error for a file that cannot be read as an image: the reason in one line, without the file's name."""


@dataclass(frozen=True)
class Labels:
    """The classes of the images of a source.

    Args:
        values: class of each image, from 0.
        names: name of each class; None if the source has none.
    """

    values: NDArray[np.int64]
    names: list[str] | None = None


@dataclass(frozen=True)
class Skipped:
    """An image that is left out.

    Args:
        index: position in the source.
        text: `name: reason`.
    """

    index: int
    text: str


@runtime_checkable
class Reader(Protocol):
    """A source of images, opened but not yet decoded. All methods raise `UserError` for a fault of the source."""

    location: str
    """Source as the user wrote it, for messages."""

    remarks: list[str]
    """What was done to the images that were read so far and should be said, a line each."""

    def __len__(self) -> int:
        """Returns the number of images in the source, unreadable ones included."""
        ...

    def labels(self) -> Labels | None:
        """Returns the labels of all images; None if the source has none."""
        ...

    def fingerprint(self) -> str:
        """Returns a text that changes when the images do, made cheaply of names, sizes, times and checksums."""
        ...

    def passed_over(self) -> str:
        """Returns the line that counts the files which are not read as images; empty if there are none."""
        ...

    def shape(self, resolution: int | None, channels: int | None, skip_bad: bool) -> Shape:
        """Returns the shape of all prepared images.

        Args:
            resolution: side in pixels that images are resized to; None keeps their size.
            channels: 1 or 3; None keeps colour if there is any.
            skip_bad: true to leave out images that cannot be read.
        """
        ...

    def blocks(self, shape: Shape, resolution: int | None, skipped: list[Skipped] | None) -> Iterator[Pixels]:
        """Yields the prepared images, in order, a few at a time.

        Args:
            shape: shape of the prepared images.
            resolution: side in pixels that images are resized to; None keeps their size.
            skipped: list that images which cannot be read are appended to; None raises `UserError` for the first.
        """
        ...
