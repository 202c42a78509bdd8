"""Packing of a dataset into lossless parts; see `unistep.data.packed` for the format."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from unistep.data.dataset import ImageDataset
from unistep.data.packed import FORMAT, INDEX, MOST_IMAGES, VERSION, sheet_name
from unistep.data.parallel import ordered_map
from unistep.data.reader import Pixels
from unistep.errors import UserError
from unistep.files import write_error
from unistep.runtime.progress import Bar
from unistep.text import shown

# WebP's longest side; more images in a sheet save little, and are decoded by fewer threads.
_MOST_SIDE, _MOST_PER_SHEET = 16_383, 400
_MOST_SHEET_BYTES = 12 << 20  # of pixels
_MEMBER_BYTES = 160  # of a zip for each member, besides its content and its name
_INDEX_BYTES = 1024  # of part.json, besides labels and names
# Higher efforts take twenty times as long and save 0.1%.
_WEBP: dict[str, Any] = {"lossless": True, "quality": 75, "method": 6, "exact": True}


def pack(dataset: ImageDataset, output: Path, max_part_bytes: int, *, progress: bool = True) -> list[Path]:
    """Writes a dataset as parts into a new folder.

    Args:
        dataset: images, and their labels if they have any.
        output: folder to be made; an empty one may be there.
        max_part_bytes: bytes of the largest part.
        progress: whether a progress bar is shown.

    Returns:
        The parts, in order.

    Raises:
        UserError: the folder holds something or cannot be written, or an image is too large to be packed.
    """
    channels, height, width = dataset.images.shape[1:]
    image_bytes = height * width * 3
    per_sheet = min(_MOST_PER_SHEET, _MOST_SIDE // height, _MOST_SHEET_BYTES // image_bytes)
    # A sheet of noise is as large as its pixels; a part has room for four.
    per_sheet = min(per_sheet, max(1, max_part_bytes // (4 * image_bytes)))
    if per_sheet < 1 or width > _MOST_SIDE:
        raise UserError(f"images of {width}x{height} pixels cannot be packed", "reduce them by `resolution`")
    if not features.check("webp"):
        raise UserError("this Pillow writes no WebP", "install Pillow from PyPI, which does")

    def encode(index: int) -> tuple[Pixels, bytes]:
        images = dataset.images[index * per_sheet : (index + 1) * per_sheet].numpy()
        sheet = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).reshape(-1, width, channels)
        held = io.BytesIO()
        Image.fromarray(sheet if channels == 3 else sheet[..., 0]).convert("RGB").save(held, "WEBP", **_WEBP)
        return sheet, held.getvalue()

    num_sheets = -(-len(dataset) // per_sheet)
    with _new_folder(output) as folder, Bar("packing images", len(dataset), active=progress) as bar:
        with _Parts(folder, dataset, per_sheet, max_part_bytes) as parts:
            for sheet, content in ordered_map(encode, num_sheets, "packing", per_sheet * image_bytes):
                bar.update(parts.add(sheet, content))
        names = parts.finish()
    return [output / name for name in names]


@dataclass
class _Part:
    """A part that is being written."""

    path: Path
    first: int
    num_bytes: int
    count: int = 0
    num_sheets: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


class _Parts:
    """The parts of a dataset, filled one after the other; how many there are is known at the end.

    Args:
        folder: folder that they are written into.
        dataset: images and labels.
        per_sheet: number of images of a sheet.
        max_bytes: bytes of the largest part.
    """

    def __init__(self, folder: Path, dataset: ImageDataset, per_sheet: int, max_bytes: int) -> None:
        channels, height, width = dataset.images.shape[1:]
        self._common = {"format": FORMAT, "version": VERSION, "total": len(dataset)}
        self._common |= {"channels": channels, "height": height, "width": width, "images_per_sheet": per_sheet}
        self._labels = None if dataset.labels is None else dataset.labels.numpy()
        self._names = dataset.class_names
        self._empty_bytes = _INDEX_BYTES + 2 * _MEMBER_BYTES + len(json.dumps(self._names))
        self._folder, self._height, self._max_bytes = folder, height, max_bytes
        self._parts: list[_Part] = []
        self._archive: zipfile.ZipFile | None = None
        self._position = 0
        self._digest = hashlib.sha256()

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._archive is not None:
            self._archive.close()

    def add(self, sheet: Pixels, content: bytes) -> int:
        """Writes a sheet.

        Args:
            sheet: its pixels [images * height, width, channels].
            content: the encoded sheet.

        Returns:
            The number of images so far.

        Raises:
            UserError: it is larger than a part.
        """
        count = len(sheet) // self._height
        need = len(content) + _MEMBER_BYTES + len(json.dumps(self._labels_of(self._position, count)))
        if self._empty_bytes + need > self._max_bytes:
            what = f"{count:,} image{'s' * (count > 1)} and the names of the classes take"
            raise UserError(
                f"{what} {self._empty_bytes + need:,} bytes, and a part {self._max_bytes:,}", "raise `max_part_mb`"
            )
        archive, part = self._open_part(need, count)
        archive.writestr(zipfile.ZipInfo(sheet_name(part.num_sheets)), content)
        part.num_sheets += 1
        part.count += count
        part.num_bytes += need
        part.digest.update(sheet.data)
        self._digest.update(sheet.data)
        self._position += count
        return self._position

    def finish(self) -> list[str]:
        """Writes the indices and gives the parts their names, which it returns; all sheets are there and closed."""
        if self._labels is not None:
            self._digest.update(self._labels.astype("<i8").data)
        total, names = len(self._parts), []
        for number, part in enumerate(self._parts, 1):
            index = self._common | {"part": number, "parts": total, "first": part.first, "count": part.count}
            index |= {"sha256": part.digest.hexdigest(), "dataset": self._digest.hexdigest()}
            index |= {"class_names": self._names, "labels": self._labels_of(part.first, part.count)}
            with zipfile.ZipFile(part.path, "a") as archive:
                archive.writestr(zipfile.ZipInfo(INDEX), json.dumps(index))
            names.append(f"part-{number:0{len(str(total))}d}-of-{total}.zip")
            part.path.rename(self._folder / names[-1])
        return names

    def _open_part(self, need: int, count: int) -> tuple[zipfile.ZipFile, _Part]:
        """The part that has room for more bytes and images: the last one, or a new one."""
        if self._archive is not None:
            last = self._parts[-1]
            if last.num_bytes + need <= self._max_bytes and last.count + count <= MOST_IMAGES:
                return self._archive, last
            self._archive.close()
        self._parts.append(_Part(self._folder / f"{len(self._parts) + 1}.tmp", self._position, self._empty_bytes))
        self._archive = zipfile.ZipFile(self._parts[-1].path, "w")
        self._archive.writestr(zipfile.ZipInfo(FORMAT), b"")
        return self._archive, self._parts[-1]

    def _labels_of(self, first: int, count: int) -> list[int] | None:
        return None if self._labels is None else self._labels[first : first + count].tolist()


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder, which has the name `output` at the end; after an error nothing new is left."""
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError(f"{shown(output)} is already there", "give another `output`, or remove it")
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        with contextlib.suppress(FileNotFoundError):
            output.rmdir()
        temporary.rename(output)
    except OSError as error:
        raise write_error(output, error, "choose another `output`") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
