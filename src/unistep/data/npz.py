"""Images and labels from an `.npz`, read a block at a time and never unpickled."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from unistep.arrays import ArrayError, ArrayHeader, read_array, read_header
from unistep.data.archive import ArchiveError, check_member, open_archive
from unistep.data.classes import check_classes, check_label
from unistep.data.names import brief
from unistep.data.prepare import MAX_PIXELS
from unistep.data.raw import RawReader
from unistep.data.reader import Labels, Pixels, Shape
from unistep.errors import UserError
from unistep.text import shown

_BLOCK_BYTES = 8 << 20

_MOST_AT_ONCE = 4 << 30  # of an array in Fortran order, which is read as a whole


PAIRS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "arr_0": ("arr_1", "labels"),  # NumPy's own names, and those of the evaluations of OpenAI
        "images": ("arr_1", "labels"),
        "x_train": ("y_train",),  # Keras
        "train_images": ("train_labels",),  # MedMNIST
        "data": ("labels", "label", "target", "y"),  # downsampled ImageNet, scikit-learn
        "x": ("y", "labels"),
        "X": ("y", "Y", "labels"),
    }
)
"""Names of the array of images, in order of precedence, and the names of its labels."""

_TEST = re.compile(r"(?i)(x_)?(test|val)(_images)?")


class NpzReader(RawReader):
    """uint8 images [N, H, W, C], [N, C, H, W] or [N, H, W] (C = 1, 3 or 4) with integer labels [N] or [N, 1].

    If both layouts fit, as in [N, 3, 32, 3], the last axis is that of the channels.

    Args:
        file: path of the file, or its content where that is known to be the bundled one.
        location: source as the user wrote it.
        image_keys: names of the array of images; the first that exists counts.
        label_keys: names of the array of labels, likewise; None is those that `PAIRS` has for the images.
        class_names: names of the classes; None if they have none.

    Raises:
        UserError: the file is damaged, or its images are missing, not uint8 or not of these shapes.
    """

    def __init__(
        self,
        file: Path | bytes,
        location: str,
        image_keys: Sequence[str] = tuple(PAIRS),
        label_keys: Sequence[str] | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__(location)
        self._file = file
        self._class_names = class_names
        with self._archive() as archive:
            key = self._find(archive, image_keys)
            if key is None:
                found = ", ".join(shown(name.removesuffix(".npy")) for name in archive.namelist()[:8]) or "nothing"
                raise UserError(f"{shown(location)}: no array is called {' or '.join(image_keys)}; it holds {found}")
            self._key = key
            self._label_keys = PAIRS.get(key, ()) if label_keys is None else label_keys
            self._others = [n.removesuffix(".npy") for n in archive.namelist()] if "train" in key else []
            member = archive.getinfo(f"{key}.npy")
            self._check(member)
            self._checksum = f"{key} {member.CRC:08x} {member.file_size}"
            header = self._header(archive, key)
        shape, dtype = header.shape, header.dtype
        self._fortran, self._offset = header.fortran, header.offset
        if dtype != np.uint8:
            raise UserError(
                f"{shown(location)}: {key} is {brief(dtype)}, not uint8; save the pixels as whole numbers 0 to 255 in"
                " uint8"
            )
        shape = self._unrolled(shape)
        self._array_shape = shape
        self._channels_last = shape == header.shape and self._layout(shape)
        if 0 in shape:
            raise UserError(f"{shown(location)}: {key} has the shape {shape} and so holds no images")
        if member.file_size != self._offset + math.prod(shape):
            raise UserError(f"{shown(location)}: {key} does not hold as many pixels as its shape {shape} says")
        _, height, width = self.native_shape
        if height * width > MAX_PIXELS or (self._fortran and member.file_size > _MOST_AT_ONCE):
            most = f"{MAX_PIXELS:,} pixels an image, or {_MOST_AT_ONCE:,} bytes in Fortran order, are read"
            raise UserError(f"{shown(location)}: {key} has the shape {shape}; at most {most}")

    def __len__(self) -> int:
        return self._array_shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of the file."""
        return len(self._file) if isinstance(self._file, bytes) else self._file.stat().st_size

    def labels(self) -> Labels | None:
        with self._archive() as archive:
            key = self._find(archive, self._label_keys)
            if key is None:
                return None
            header = self._header(archive, key)
            shape, dtype = header.shape, header.dtype
            if not np.issubdtype(dtype, np.integer):
                raise UserError(f"{shown(self.location)}: {key} is {dtype}; labels must be integers from 0")
            if shape not in ((len(self),), (len(self), 1)):
                raise UserError(
                    f"{shown(self.location)}: {key} has the shape {shape}, but there are {len(self)} images; give one"
                    " integer label an image, or leave labels unread with `use_labels=False`"
                )
            member = archive.getinfo(f"{key}.npy")
            self._check(member)
            with archive.open(member) as stream:
                values = self._array(stream, member)
        for label in (values.min(), values.max()):  # before numbers beyond int64 are wrapped
            check_label(int(label), shown(self.location), key)
        return check_classes(Labels(values.reshape(-1).astype(np.int64), self._class_names), self.location)

    def fingerprint(self) -> str:
        return f"npz {self._checksum}"

    def passed_over(self) -> str:
        others = [name for name in self._others if _TEST.fullmatch(name)]
        if not others or isinstance(self._file, bytes):
            return ""
        return f"{shown(self.location)}: {self._key} is read, and {brief(others[0])} passed over"

    def rows(self) -> Iterator[Pixels]:
        with self._archive() as archive, archive.open(f"{self._key}.npy") as stream:
            if self._fortran:
                # The first axis varies fastest, so no image is whole before the end of the file.
                array = self._array(stream, archive.getinfo(f"{self._key}.npy"))
                yield self._channels_first(array.reshape(self._array_shape))
                return
            stream.read(self._offset)
            row_bytes = int(np.prod(self._array_shape[1:]))
            left = len(self)
            while left:
                count = min(left, max(1, _BLOCK_BYTES // row_bytes))
                content = stream.read(count * row_bytes)
                if len(content) != count * row_bytes:
                    raise UserError(f"{shown(self.location)}: {self._key} ends early; the file is incomplete")
                rows = np.frombuffer(content, np.uint8).reshape(count, *self._array_shape[1:])
                yield self._channels_first(rows)
                left -= count

    def _channels_first(self, rows: Pixels) -> Pixels:
        if rows.ndim == 3:
            return rows[:, None]
        return rows.transpose(0, 3, 1, 2) if self._channels_last else rows

    @property
    def native_shape(self) -> Shape:
        _, *shape = self._array_shape
        if len(shape) == 2:
            return 1, shape[0], shape[1]
        return (shape[2], shape[0], shape[1]) if self._channels_last else (shape[0], shape[1], shape[2])

    def _unrolled(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of images that are stored as rows of numbers, channel by channel, as CIFAR's are."""
        side = math.isqrt(shape[1] // 3) if len(shape) == 2 else 0
        return (shape[0], 3, side, side) if side and 3 * side**2 == shape[1] else shape

    def _layout(self, shape: tuple[int, ...]) -> bool:
        """Returns whether the channels are the last axis."""
        if len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3, 4)):
            return True
        if len(shape) == 4 and shape[1] in (1, 3, 4):
            return False
        raise UserError(
            f"{shown(self.location)}: {self._key} has the shape {shape}; images must be [N, H, W, C], [N, C, H, W] or"
            " [N, H, W] with 1, 3 or 4 channels"
        )

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        """The open archive; what its reading raises becomes one line that names the file."""
        try:
            with open_archive(io.BytesIO(self._file) if isinstance(self._file, bytes) else self._file) as archive:
                yield archive
        except (UserError, GeneratorExit):
            raise
        except ArchiveError as error:
            raise UserError(f"{shown(self.location)}: it is damaged or no .npz file ({error})") from error
        except Exception as error:  # what zipfile, zlib and numpy's parser of headers raise for damaged bytes
            reason = brief(error) or type(error).__name__
            raise UserError(f"{shown(self.location)}: it cannot be read ({reason})") from error

    def _check(self, member: zipfile.ZipInfo) -> None:
        if not isinstance(self._file, bytes):  # the content is the bundled file's, which is packed by lzma
            check_member(member)

    def _find(self, archive: zipfile.ZipFile, keys: Sequence[str]) -> str | None:
        names = archive.namelist()
        key = next((key for key in keys if f"{key}.npy" in names), None)
        if key is not None and names.count(f"{key}.npy") > 1:
            raise UserError(f"{shown(self.location)}: {key} is in it twice; save each array once")
        return key

    def _array(self, stream: Any, member: zipfile.ZipInfo) -> np.ndarray:
        try:
            return read_array(stream, member.file_size, _MOST_AT_ONCE)
        except ArrayError as error:
            name = member.filename.removesuffix(".npy")
            raise UserError(f"{shown(self.location)}: {name}: {error}; the file is damaged") from None

    def _header(self, archive: zipfile.ZipFile, key: str) -> ArrayHeader:
        with archive.open(f"{key}.npy") as stream:
            try:
                return read_header(stream)  # pyright: ignore[reportArgumentType]
            except ArrayError as error:
                pickled = "it holds pickled objects or records" if "objects" in str(error) else str(error)
                raise UserError(f"{shown(self.location)}: {key}: {pickled}; save plain arrays of numbers") from None
