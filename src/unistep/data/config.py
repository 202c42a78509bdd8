"""What to read and how to prepare it."""

from __future__ import annotations

from dataclasses import dataclass

from unistep.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """A dataset of images and how its images are prepared.

    Raises:
        UserError: if a value is out of its range.
    """

    source: str = "mnist"
    """`mnist` or `mnist-test` (bundled), or the path of a folder of images, of a `.zip` of images (with or without
    EDM's `dataset.json`), or of an `.npz` of uint8 images. A folder that is itself called `mnist` is `./mnist`."""

    resolution: int | None = None
    """Side of the images in pixels: each image is cropped to its central square and resized to this side with a
    Lanczos filter, as EDM's `--transform=center-crop` does. None keeps the images as they are, all of one size."""

    channels: int | None = None
    """1 makes every image grey, 3 makes every image colour. None keeps colour, and keeps grey if all are grey."""

    flip: bool = False
    """Mirror each image left to right with probability 1/2 when it is put into a batch."""

    skip_bad: bool = False
    """Leave out files that cannot be read as images, and list them, instead of stopping at the first."""

    use_labels: bool = True
    """Read class labels: from `dataset.json` or else class subfolders, from `arr_1` or `labels` of an `.npz`."""

    memory_limit: int = 4 << 30
    """Bytes of prepared uint8 pixels that are held in memory; a larger dataset is memory-mapped from the cache."""

    cache_dir: str | None = None
    """Where larger datasets are cached once prepared. None is `$XDG_CACHE_HOME/unistep/data`, or
    `~/.cache/unistep/data` where that variable is not set."""

    def __post_init__(self) -> None:
        if self.resolution is not None and self.resolution < 1:
            raise UserError(f"data.resolution is {self.resolution}; give a side of 1 pixel or more, or none")
        if self.channels not in (None, 1, 3):
            raise UserError(f"data.channels is {self.channels}; give 1 (grey), 3 (colour) or none (as the images are)")
        if self.memory_limit < 0:
            raise UserError(f"data.memory_limit is {self.memory_limit}; give a number of bytes, 0 or more")
