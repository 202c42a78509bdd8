"""A dataset of images held once as uint8, and the batches taken from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images of one size, with or without class labels.

    Raises:
        ValueError: if there are not as many labels as images, or a label has no class name.
    """

    images: UInt8[Tensor, "N C H W"]
    """Pixels 0 ... 255, in memory or memory-mapped from a file. A mapped tensor must not be written to."""

    labels: Int64[Tensor, "N"] | None = None
    """Class of each image, from 0; None if the images have no classes."""

    class_names: list[str] | None = None
    """Name of each class where the source has names, as class subfolders do."""

    skipped: list[str] = field(default_factory=list)
    """`name: reason` of each file left out because it could not be read."""

    def __post_init__(self) -> None:
        if self.labels is None:
            return
        if len(self.labels) != len(self.images):
            raise ValueError(f"{len(self.labels)} labels for {len(self.images)} images")
        if self.class_names is not None and len(self.labels) and int(self.labels.max()) >= len(self.class_names):
            raise ValueError(f"label {int(self.labels.max())} is beyond the {len(self.class_names)} class names")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (colour)."""
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @cached_property
    def num_classes(self) -> int:
        """Number of classes; 0 if the images have no labels. Without names it is the highest label + 1."""
        if self.labels is None:
            return 0
        if self.class_names is not None:
            return len(self.class_names)
        return int(self.labels.max()) + 1 if len(self.labels) else 0

    def batch(
        self, indices: Int64[Tensor, "B"], flips: Bool[Tensor, "B"] | None = None
    ) -> tuple[UInt8[Tensor, "B C H W"], Int64[Tensor, "B"] | None]:
        """Copies of the images at `indices` and their labels; those whose `flips` is true mirrored left to right.

        Raises:
            IndexError: if an index is not in 0 ... N - 1.
        """
        images = torch.index_select(self.images, 0, indices)
        if flips is not None:
            images = torch.where(flips[:, None, None, None], images.flip(-1), images)
        labels = None if self.labels is None else torch.index_select(self.labels, 0, indices)
        return images, labels
