"""`unistep.pack_dataset`: a dataset as lossless parts that travel one by one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unistep.arguments import plain_arguments
from unistep.checks import check_range, user_path
from unistep.errors import UserError
from unistep.text import html_table

if TYPE_CHECKING:
    from unistep.data import ImageDataset


@dataclass(frozen=True, repr=False)
class PackedDataset:
    """A dataset that was packed.

    Args:
        path: folder of the parts, which is a dataset again.
        parts: the parts, in order.
        num_images: number of images.
        num_bytes: bytes of all parts.
        pixel_bytes: bytes of the images' pixels.
    """

    path: Path
    parts: tuple[Path, ...]
    num_images: int
    num_bytes: int
    pixel_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        return vars(self) | {"path": str(self.path), "parts": [str(part) for part in self.parts]}

    def rows(self) -> list[tuple[str, str]]:
        """Returns name and facts of the folder and of each part."""
        share = f"{self.num_bytes / self.pixel_bytes:.0%} of the pixels"
        total = f"{self.num_images:,} images, {self.num_bytes / 1e6:,.1f} MB ({share})"
        sizes = [(str(part), f"{part.stat().st_size / 1e6:,.1f} MB") for part in self.parts]
        return [(str(self.path), total), *sizes]

    def __repr__(self) -> str:
        count = len(self.parts)
        return f"PackedDataset({self.path}: {self.num_images:,} images in {count:,} part{'s' * (count != 1)})"

    def _repr_html_(self) -> str:
        return html_table("packed", self.rows())


@plain_arguments(empty=["source"])
def pack_dataset(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    max_part_mb: float = 30,
    resolution: int | None = None,
    channels: int | None = None,
    class_names: Sequence[str] | None = None,
    progress: bool = True,
) -> PackedDataset:
    """Writes a dataset as lossless WebP sheets in parts of a limited size.

    The folder of the parts is a dataset again, with the same pixels, order and labels. CIFAR-10's 50,000 images take
    three parts of 30 MB, a little more than half of their pixels.

    Args:
        source: dataset: folder, .zip or .npz of images, or mnist, mnist-test or emoji (bundled).
        output: folder for the parts; it is made.
        max_part_mb: size of the largest part in millions of bytes; default: 30.
        resolution: side of the images in pixels, to which each is cropped in its middle and resized; default: as they
            are, all of one size.
        channels: 1 makes every image grey, 3 makes every image colour; default: grey if all are, else colour.
        class_names: names of the classes 0, 1, 2, ..., as "cat,dog"; default: those of the source, if it has any.
        progress: show a progress bar on a terminal.

    Returns:
        The folder, the parts and their sizes.

    Raises:
        UserError: the dataset cannot be read, an image does not fit into a part, or the folder cannot be written.

    Example:
        >>> import tempfile, unistep
        >>> folder = tempfile.TemporaryDirectory()
        >>> packed = unistep.pack_dataset("mnist-test", folder.name, resolution=8, progress=False)
        >>> len(packed.parts), unistep.open_dataset(packed.path)
        (1, ImageDataset(10,000 grey images of 8x8, 10 classes))
    """
    from unistep.data.open import open_dataset
    from unistep.data.pack import pack

    check_range("max_part_mb", max_part_mb, 0.01, 4000)
    dataset = open_dataset(source, resolution=resolution, channels=channels)
    if class_names is not None:
        dataset = _named(dataset, class_names)
    folder = user_path(output)
    parts = pack(dataset, folder, round(max_part_mb * 1e6), progress=progress)
    num_bytes = sum(part.stat().st_size for part in parts)
    return PackedDataset(folder, tuple(parts), len(dataset), num_bytes, dataset.images.numel())


def _named(dataset: "ImageDataset", names: Sequence[str]) -> "ImageDataset":
    if len(names) < dataset.num_classes or not dataset.num_classes:
        raise UserError(f"has {len(names)} names, and the dataset {dataset.num_classes} classes", field="class_names")
    return replace(dataset, class_names=list(names))
