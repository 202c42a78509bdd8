"""Settings of a dataset: what to read, and how to prepare it."""

from __future__ import annotations

from dataclasses import dataclass

from unistep.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """A dataset of images and how its images are prepared.

    Args:
        source: mnist, mnist-test or emoji (bundled); cifar10, cifar10-test, fashion-mnist or fashion-mnist-test (once
            fetched); or the path of a folder of images, of a .zip of images (with or without EDM's dataset.json), of an
            .npz of uint8 images, of a folder of packed parts or of .tar shards, or of CIFAR-10, IDX files or .parquet
            as they are published, of a folder of save_to_disk, or hf://datasets/OWNER/NAME; shards also as
            name-{000000..000123}.tar, or with :: between their names; a folder that is itself called mnist is ./mnist.
        resolution: side of the images in pixels, to which each is cropped in its middle and resized with a Lanczos
            filter, as EDM's `--transform=center-crop` does; null keeps the images as they are, all of one size.
        channels: 1 makes every image grey, 3 makes every image colour; null keeps colour, and grey if all are grey.
        flip: whether each image is mirrored left to right with probability 1/2 when it is put into a batch.
        skip_bad: whether files that cannot be read as images are left out and listed; else the first one is an error.
        use_labels: whether class labels are read: from dataset.json, else metadata.jsonl or metadata.csv, else class
            subfolders; from arr_1, labels or y_train of an .npz; from the .cls, .json or .txt beside an image of a
            shard.
        memory_limit: bytes of prepared uint8 pixels that are held in memory; a larger dataset is memory-mapped from the
            cache, or, if it is one of shards, decoded when a batch needs it.
        cache_dir: folder in which larger datasets are cached once prepared; null is $XDG_CACHE_HOME/unistep/data, or
            ~/.cache/unistep/data where that variable is not set.

        stream: whether the images of shards are decoded by other processes when a batch needs them, so that neither
            memory nor cache holds all pixels; null does so where they take more than `memory_limit`.
        workers: number of those processes, of each process that trains; null is its share of the processors, at most
            16.

    Raises:
        UserError: a value is out of range.
    """

    source: str = "mnist"
    resolution: int | None = None
    channels: int | None = None
    flip: bool = False
    skip_bad: bool = False
    use_labels: bool = True
    memory_limit: int = 4 << 30
    cache_dir: str | None = None
    stream: bool | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.resolution is not None and self.resolution < 1:
            raise UserError(f"{self.resolution}: give a side of 1 pixel or more, or null", field="resolution")
        if self.channels not in (None, 1, 3):
            raise UserError(f"{self.channels}: give 1 (grey), 3 (colour) or null (as the images are)", field="channels")
        if self.workers is not None and not 1 <= self.workers <= 256:
            raise UserError(f"{self.workers}: give 1 to 256 processes, or null", field="workers")
        if self.memory_limit < 0:
            raise UserError(f"{self.memory_limit}: give a number of bytes, 0 or more", field="memory_limit")
