"""Sources of plain pixels: images of one size without a codec of their own, prepared a block at a time."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from unistep.data.classes import check_classes, check_label
from unistep.data.parallel import cpu_count
from unistep.data.prepare import composite_on_white, fit, to_pixels
from unistep.data.reader import Labels, Pixels, Shape, Skipped
from unistep.text import shown


class RawReader(ABC):
    """A reader of images that all have one size and 1, 3 or 4 channels.

    Args:
        location: source as the user wrote it.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.remarks: list[str] = []

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def native_shape(self) -> Shape:
        """Channels, height and width of the stored images."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes of the files."""

    @abstractmethod
    def labels(self) -> Labels | None:
        """Returns the labels of all images; None if the source has none."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a text that changes when the images do."""

    @abstractmethod
    def rows(self) -> Iterator[Pixels]:
        """Yields the stored images, in order, as [k, C, H, W]."""

    @property
    def mode(self) -> str:
        """Pillow's name for the kind of pixels: L, RGB or RGBA."""
        return {1: "L", 3: "RGB", 4: "RGBA"}[self.native_shape[0]]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the stored images."""
        _, height, width = self.native_shape
        return width, height

    def passed_over(self) -> str:
        return ""

    def shape(self, resolution: int | None, channels: int | None, skip_bad: bool) -> Shape:
        native, height, width = self.native_shape
        return channels or min(native, 3), resolution or height, resolution or width

    def blocks(self, shape: Shape, resolution: int | None, skipped: list[Skipped] | None) -> Iterator[Pixels]:
        def convert(row: Pixels) -> Pixels:
            image = Image.fromarray(row.transpose(1, 2, 0) if row.shape[0] > 1 else row[0])
            if image.mode == "RGBA":
                image = composite_on_white(image)
            return to_pixels(fit(image, resolution), shape[0])

        def convert_all(rows: Pixels) -> Pixels:
            return np.stack([convert(row) for row in rows])

        workers = cpu_count()
        with ThreadPoolExecutor(workers) as pool:
            for rows in self.rows():
                if rows.shape[1:] == shape:
                    yield rows
                elif rows.shape[1:] == (1, *shape[1:]):
                    yield np.repeat(rows, shape[0], axis=1)
                else:
                    parts = np.array_split(rows, min(workers, len(rows)))
                    yield np.concatenate(list(pool.map(convert_all, parts)))


class HeldReader(RawReader):
    """Images that a file was read into memory for.

    Args:
        location: source as the user wrote it.
        arrays: uint8 pixels [k, C, H, W], one or more, of one shape but k.
        labels: class of each image; None if there are none.
        class_names: names of the classes; names that are fewer than the classes are not used.
        num_bytes: bytes of the files.
        passed: line that tells what of the source is not read; empty if all is.
    """

    def __init__(
        self,
        location: str,
        arrays: Sequence[Pixels],
        labels: Sequence[int] | None,
        class_names: Sequence[str] | None,
        num_bytes: int,
        passed: str = "",
    ) -> None:
        super().__init__(location)
        self._arrays, self._labels, self._names = arrays, labels, class_names
        self._num_bytes, self._passed = num_bytes, passed

    def __len__(self) -> int:
        return sum(map(len, self._arrays))

    @property
    def native_shape(self) -> Shape:
        _, channels, height, width = self._arrays[0].shape
        return channels, height, width

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def labels(self) -> Labels | None:
        if self._labels is None:
            return None
        values = np.array([check_label(label, shown(self.location), "an image") for label in self._labels], np.int64)
        names = list(self._names) if self._names and len(self._names) > int(values.max()) else None
        return check_classes(Labels(values, names), self.location)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for array in self._arrays:
            digest.update(np.ascontiguousarray(array).data)
        return f"pixels {self.native_shape} {digest.hexdigest()}"

    def passed_over(self) -> str:
        return self._passed

    def rows(self) -> Iterator[Pixels]:
        yield from self._arrays
