"""A dataset of images held once as uint8, and the batches taken from it."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from unistep.data.streaming import StreamedImages

# A notebook's picture: images, columns, and pixels of width that it is enlarged to.
_SHOWN, _COLUMNS, _MIN_WIDTH = 64, 8, 640


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """Images of one size, with or without class labels.

    Args:
        images: pixels 0 ... 255 [N, C, H, W], in memory or mapped from a file; mapped ones must not be written to.
            Those of shards that are streamed have a tensor's shape and slices.
        labels: class of each image, from 0; None if the images have no classes.
        class_names: name of each class; None if the source has no names, as those of subfolders.
        skipped: `name: reason` of each file that was left out because it could not be read.
        file: file that the images are mapped from; empty where they are in memory or streamed.

    Raises:
        ValueError: there are not as many labels as images, or a label has no class name.
    """

    images: UInt8[Tensor, "N C H W"] | StreamedImages
    labels: Int64[Tensor, "N"] | None = None
    class_names: list[str] | None = None
    skipped: list[str] = field(default_factory=list)
    file: str = ""

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
        """Number of classes: that of their names, or the highest label + 1; 0 if the images have no labels."""
        if self.labels is None:
            return 0
        if self.class_names is not None:
            return len(self.class_names)
        return int(self.labels.max()) + 1 if len(self.labels) else 0

    def batch(
        self, indices: Int64[Tensor, "B"], flips: Bool[Tensor, "B"] | None = None
    ) -> tuple[UInt8[Tensor, "B C H W"], Int64[Tensor, "B"] | None]:
        """Copies images and their labels.

        Args:
            indices: positions of the images in the dataset.
            flips: whether each image is mirrored left to right; None mirrors none.

        Returns:
            The images, and their labels; None for the latter if the dataset has none.

        Raises:
            IndexError: an index is not in 0 ... N - 1.
        """
        labels = None if self.labels is None else torch.index_select(self.labels, 0, indices)
        if isinstance(self.images, StreamedImages):
            return self.images.take(indices, flips), labels
        images = torch.index_select(self.images, 0, indices)
        if flips is not None:
            images = torch.where(flips[:, None, None, None], images.flip(-1), images)
        return images, labels

    def __repr__(self) -> str:
        height, width = self.image_size
        kind = {1: "grey", 3: "colour"}.get(self.channels, f"{self.channels}-channel")
        classes = f", {self.num_classes:,} classes" if self.num_classes else ""
        skipped = f", {len(self.skipped):,} skipped" if self.skipped else ""
        return f"ImageDataset({len(self):,} {kind} images of {width}x{height}{classes}{skipped})"

    def _repr_png_(self) -> bytes | None:
        """Returns a picture of the first images; None if there are none."""
        if not len(self):
            return None
        images = self.images[:_SHOWN]
        colour = images.expand(-1, 3, -1, -1) if self.channels == 1 else images
        framed = functional.pad(colour, (1, 1, 1, 1), value=255)
        rows, (height, width) = -(-len(images) // _COLUMNS), framed.shape[2:]
        sheet = torch.full((rows * _COLUMNS, 3, height, width), 255, dtype=torch.uint8)
        sheet[: len(images)] = framed
        pixels = sheet.view(rows, _COLUMNS, 3, height, width).permute(0, 3, 1, 4, 2)
        picture = Image.fromarray(pixels.reshape(rows * height, _COLUMNS * width, 3).numpy())
        factor = max(1, round(_MIN_WIDTH / picture.width))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        file = io.BytesIO()
        picture.save(file, format="PNG")
        return file.getvalue()
