"""`unistep.pack_dataset`: a dataset as lossless parts that travel one by one, or as shards that are streamed."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from unistep.arguments import plain_arguments
from unistep.checks import check_range, user_path
from unistep.errors import UserError
from unistep.text import html_table

PackFormat = Literal["parts", "shards"]

_log = logging.getLogger("unistep")


@dataclass(frozen=True, repr=False)
class PackedDataset:
    """A dataset that was packed.

    Args:
        path: folder of the parts or shards, which is a dataset again.
        parts: the parts or shards, in order.
        num_images: number of images.
        num_bytes: bytes of all parts or shards.
        pixel_bytes: bytes of the images' pixels; None for shards.
        rejected: name and reason of each image that is left out of shards.
        former: number of the shards that were there from a call that was broken off.
    """

    path: Path
    parts: tuple[Path, ...]
    num_images: int
    num_bytes: int
    pixel_bytes: int | None
    rejected: tuple[tuple[str, str], ...] = ()
    former: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        parts = [str(part) for part in self.parts]
        return vars(self) | {"path": str(self.path), "parts": parts, "rejected": [list(one) for one in self.rejected]}

    def rows(self) -> list[tuple[str, str]]:
        """Returns name and facts of the folder, and of each part or of what was rejected."""
        if self.pixel_bytes is None:
            former = f", {self.former:,} of them from before" if self.former else ""
            shards = f"{len(self.parts):,} shard{'s' * (len(self.parts) != 1)}{former}"
            total = f"{self.num_images:,} images, {self.num_bytes / 1e6:,.1f} MB in {shards}"
            return [(str(self.path), total), *([("rejected", self._rejected())] if self.rejected else [])]
        share = f"{self.num_bytes / self.pixel_bytes:.0%} of the pixels"
        total = f"{self.num_images:,} images, {self.num_bytes / 1e6:,.1f} MB ({share})"
        sizes = [(str(part), f"{part.stat().st_size / 1e6:,.1f} MB") for part in self.parts]
        return [(str(self.path), total), *sizes]

    def _rejected(self) -> str:
        count, all_of_them = len(self.rejected), self.num_images + len(self.rejected)
        name, reason = self.rejected[0]
        return f"{count:,} of {all_of_them:,} images, first {name} ({reason}); all are in {self.path / 'rejected.json'}"

    def __repr__(self) -> str:
        count, what = len(self.parts), "shard" if self.pixel_bytes is None else "part"
        return f"PackedDataset({self.path}: {self.num_images:,} images in {count:,} {what}{'s' * (count != 1)})"

    def _repr_html_(self) -> str:
        return html_table("packed", self.rows())


@plain_arguments(empty=["source"])
def pack_dataset(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    format: PackFormat = "parts",
    max_part_mb: float | None = None,
    resolution: int | None = None,
    channels: int | None = None,
    class_names: Sequence[str] | None = None,
    shard_images: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> PackedDataset:
    """Writes a dataset as lossless WebP sheets in parts of a limited size, or as shards of any number of images.

    The folder is a dataset again, with the same pixels, order and labels. CIFAR-10's 50,000 images take three parts of
    30 MB, a little more than half of their pixels. Shards are WebDataset's: `.tar` files of single images, which
    training streams. They are made by several processes; images that cannot be read are left out and listed, and a call
    that was broken off goes on when it is repeated.

    Args:
        source: dataset: folder, .zip or .npz of images, .parquet, or mnist, mnist-test or emoji (bundled).
        output: folder for the parts or shards; it is made.
        format: parts, to be held in memory; or shards, for sets of more images than memory holds.
        max_part_mb: size of the largest part in millions of bytes; default: 30.
        resolution: side of the images in pixels, to which each is cropped in its middle and resized; default: as they
            are, in parts all of one size.
        channels: 1 makes every image grey, 3 makes every image colour; default: grey if all are, else colour; in shards
            each as it is.
        class_names: names of the classes 0, 1, 2, ..., as "cat,dog"; default: those of the source, if it has any.
        shard_images: number of images of the source for each shard; default: 10000.
        workers: number of processes that make shards; default: one for each processor.
        progress: show a progress bar on a terminal.

    Returns:
        The folder, the parts and their sizes.

    Raises:
        UserError: the dataset cannot be read, an image does not fit into a part, the folder cannot be written, or an
            argument is not for the format.

    Example:
        >>> import tempfile, unistep
        >>> folder = tempfile.TemporaryDirectory()
        >>> packed = unistep.pack_dataset("mnist-test", folder.name, resolution=8, progress=False)
        >>> len(packed.parts), unistep.open_dataset(packed.path)
        (1, ImageDataset(10,000 grey images of 8x8, 10 classes))
    """
    others = {"max_part_mb": max_part_mb} if format == "shards" else {"shard_images": shard_images, "workers": workers}
    for name, value in others.items():
        if value is not None:
            raise UserError(f"is not for {format}", "leave it out, or give the other `format`", field=name)
    folder = user_path(output)
    if format == "shards":
        return _shards(os.fspath(source), folder, resolution, channels, class_names, shard_images, workers, progress)
    from unistep.data.open import open_dataset
    from unistep.data.pack import pack

    max_part_mb = 30 if max_part_mb is None else max_part_mb
    check_range("max_part_mb", max_part_mb, 0.01, 4000)
    dataset = open_dataset(source, resolution=resolution, channels=channels)
    if class_names is not None:
        dataset = replace(dataset, class_names=_enough(class_names, dataset.num_classes))
    parts = pack(dataset, folder, round(max_part_mb * 1e6), progress=progress)
    num_bytes = sum(part.stat().st_size for part in parts)
    return PackedDataset(folder, tuple(parts), len(dataset), num_bytes, dataset.images.numel())


def _shards(
    source: str,
    folder: Path,
    resolution: int | None,
    channels: int | None,
    class_names: Sequence[str] | None,
    shard_images: int | None,
    workers: int | None,
    progress: bool,
) -> PackedDataset:
    from unistep.data.config import DataConfig
    from unistep.data.open import open_reader
    from unistep.data.pack_shards import pack_shards
    from unistep.data.parallel import cpu_count

    DataConfig(source, resolution=resolution, channels=channels, workers=workers)  # checks them
    check_range("shard_images", 10_000 if shard_images is None else shard_images, 1, 10_000_000)
    reader = open_reader(source)
    labels = reader.labels()
    if class_names is not None:
        count = 0 if labels is None else int(labels.values.max()) + 1
        names = _enough(class_names, count)
        labels = None if labels is None else replace(labels, names=names)
    made = pack_shards(
        reader,
        labels,
        folder,
        resolution=resolution,
        channels=channels,
        shard_images=shard_images or 10_000,
        workers=workers or cpu_count(),
        progress=progress,
    )
    for line in filter(None, [reader.passed_over(), *reader.remarks]):
        _log.warning("%s", line)
    parts = tuple(folder / name for name in made.names)
    return PackedDataset(folder, parts, made.num_images, made.num_bytes, None, tuple(made.rejected), made.former)


def _enough(names: Sequence[str], count: int) -> list[str]:
    if len(names) < count or not count:
        raise UserError(f"has {len(names)} names, and the dataset {count} classes", field="class_names")
    return list(names)
