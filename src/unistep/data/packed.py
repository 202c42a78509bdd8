"""Packed datasets: images of one size as lossless WebP sheets, in parts that travel one by one.

A part is a `.zip` of stored, not deflated, members:

    unistep-packed-images   empty, and first, so that the file's beginning tells a part
    sheet-00000.webp, ...   images one below the other, `images_per_sheet` of them, fewer in the last
    part.json               place of the part in the dataset, size of the images, labels, SHA-256 sum of the pixels

Images of a sheet share its statistics: CIFAR-10 takes 1,652 bytes an image, as single WebP files 1,814, as PNG 2,259.
"""

from __future__ import annotations

import hashlib
import re
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unistep.data.archive import ArchiveError, open_archive, unpack
from unistep.data.classes import MOST_LABEL, check_classes, check_label
from unistep.data.inventory import in_a_row
from unistep.data.names import brief, files_in
from unistep.data.parallel import ordered_map
from unistep.data.prepare import MAX_PIXELS, decode
from unistep.data.raw import RawReader
from unistep.data.reader import BadImage, Labels, Pixels, Shape
from unistep.documents import DocumentError, parse_json
from unistep.errors import UserError
from unistep.text import shown

FORMAT = "unistep-packed-images"
VERSION = 1
INDEX = "part.json"
MOST_IMAGES = 1 << 20
"""Most images of a part."""

_ZIP = re.compile(r"(?is).+\.zip")
_MOST_INDEX = 16 << 20
_MOST_PARTS = 10_000
_MOST_SHOWN = 10
_BEGINNING = 30 + len(FORMAT)  # the header of a zip's first member, and its name


@dataclass(frozen=True)
class Part:
    """The index of a part.

    Args:
        part, parts: number of the part, from 1, and number of all.
        first: position of its first image in the dataset.
        count: number of its images.
        total: number of images of the dataset.
        channels, height, width: shape of every image.
        images_per_sheet: number of images of each sheet but the last.
        labels: class of each image of the part; None if the dataset has no labels.
        class_names: name of each class; None if they have no names.
        sha256: SHA-256 sum of the part's pixels, in the order of images, rows, columns and channels.
        dataset: SHA-256 sum of the pixels and labels (int64) of all parts, which is what makes them one dataset.
    """

    part: int
    parts: int
    first: int
    count: int
    total: int
    channels: int
    height: int
    width: int
    images_per_sheet: int
    labels: list[int] | None
    class_names: list[str] | None
    sha256: str
    dataset: str

    @property
    def num_sheets(self) -> int:
        """Number of the part's sheets."""
        return -(-self.count // self.images_per_sheet)

    @property
    def shape(self) -> Shape:
        """Channels, height and width."""
        return self.channels, self.height, self.width


def sheet_name(index: int) -> str:
    """The name of a sheet in its part, by its position from 0."""
    return f"sheet-{index:05d}.webp"


def is_part(path: Path) -> bool:
    """Returns whether a file begins as a part does; one that cannot be read is none."""
    try:
        with path.open("rb") as file:
            start = file.read(_BEGINNING)
    except OSError:
        return False
    return start.startswith(b"PK\3\4") and start[30:] == FORMAT.encode()


def open_parts(path: Path, location: str) -> PackedReader | None:
    """Opens the parts in a folder, or a dataset of one part.

    Args:
        path: folder or file.
        location: source as the user wrote it.

    Returns:
        The reader; None where there are no parts.

    Raises:
        UserError: a part is missing, there twice, damaged, or of another dataset.
    """
    files = files_in(path, _ZIP) if path.is_dir() else [path] if _ZIP.fullmatch(path.name) else []
    parts = [file for file in files if is_part(file)]
    return PackedReader(parts, location) if parts else None


class PackedReader(RawReader):
    """The images of a packed dataset, in their original order.

    Args:
        paths: the parts, in any order.
        location: source as the user wrote it.

    Raises:
        UserError: a part is missing, there twice, damaged, or of another dataset.
    """

    def __init__(self, paths: Sequence[Path], location: str) -> None:
        super().__init__(location)
        opened = sorted((_OpenPart(path) for path in paths), key=lambda one: one.index.part)
        self._parts = opened
        self._first = opened[0].index
        self._check_together()

    def __len__(self) -> int:
        return self._first.total

    @property
    def native_shape(self) -> Shape:
        return self._first.shape

    @property
    def num_bytes(self) -> int:
        return sum(one.path.stat().st_size for one in self._parts)

    def labels(self) -> Labels | None:
        if self._first.labels is None:
            return None
        values = [label for one in self._parts for label in one.index.labels or ()]
        return check_classes(Labels(np.array(values, np.int64), self._first.class_names), self.location)

    def fingerprint(self) -> str:
        sums = ":".join(one.checksum for one in self._parts)
        return f"packed {self._first.dataset} {hashlib.sha256(sums.encode()).hexdigest()}"

    def rows(self) -> Iterator[Pixels]:
        places = [(one, index) for one in self._parts for index in range(one.index.num_sheets)]
        channels, height, width = self.native_shape
        item_bytes = self._first.images_per_sheet * height * width * 3
        digest = hashlib.sha256()
        sheets = ordered_map(lambda i: places[i][0].sheet(places[i][1]), len(places), "reading sheets", item_bytes)
        for (part, index), sheet in zip(places, sheets, strict=True):
            digest.update(sheet.data)
            yield sheet.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
            if index == part.index.num_sheets - 1:
                if digest.hexdigest() != part.index.sha256:
                    raise part.damaged("its pixels are not those that were packed")
                digest = hashlib.sha256()

    def _check_together(self) -> None:
        """Refuses parts that are not those of one dataset, each once."""
        first, found = self._first, [one.index.part for one in self._parts]
        for one, other in zip(self._parts, self._parts[1:], strict=False):
            ours, theirs = one.index, other.index
            if (ours.dataset, ours.parts) != (theirs.dataset, theirs.parts):
                raise UserError(
                    f"{shown(other.path)}: it is a part of another dataset than {shown(one.path.name)}",
                    "keep the parts of one dataset in a folder",
                )
            if ours.part == theirs.part:
                raise UserError(f"{shown(other.path)}: part {ours.part} is there twice", "keep one")
        missing = sorted(set(range(1, first.parts + 1)) - set(found))
        if missing:
            numbers = [str(number) for number in missing[:_MOST_SHOWN]]
            if len(missing) > _MOST_SHOWN:
                numbers.append(f"{len(missing) - _MOST_SHOWN:,} more")
            what = f"part{'s' * (len(missing) > 1)} {in_a_row(numbers)} of {first.parts:,}"
            raise UserError(
                f"{shown(self.location)}: {what} {'is' if len(missing) == 1 else 'are'} missing",
                f"put all {first.parts:,} parts of the dataset into one folder, and give that folder",
            )
        place = 0
        for one in self._parts:
            same = one.index.shape == first.shape and one.index.total == first.total
            same = same and one.index.images_per_sheet == first.images_per_sheet
            same = same and one.index.class_names == first.class_names
            same = same and (one.index.labels is None) == (first.labels is None)
            if not same or one.index.first != place:
                raise one.damaged("it does not fit the parts before it")
            place += one.index.count
        if place != first.total:
            raise self._parts[-1].damaged(f"the parts hold {place:,} of {first.total:,} images")


class _OpenPart:
    """One part: its index and its sheets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = open_archive(path)
            member = self._archive.getinfo(INDEX)
            if member.file_size > _MOST_INDEX:
                raise ArchiveError(f"{INDEX} has {member.file_size:,} bytes")
            document = parse_json(unpack(self._archive, member))
            self.index = _read_index(document, shown(path))
            self._sheets = [self._archive.getinfo(sheet_name(index)) for index in range(self.index.num_sheets)]
        except KeyError as error:
            raise self.damaged(f"it lacks {brief(error.args[0])}") from None
        except (ArchiveError, DocumentError) as error:
            raise self.damaged(str(error)) from error
        self.checksum = " ".join(f"{member.CRC:08x}" for member in (member, *self._sheets))
        self._lock = threading.Lock()  # a ZipFile counts its open members without one

    def sheet(self, index: int) -> Pixels:
        """Returns the pixels [images * height, width, channels] of a sheet; several threads may call it."""
        part, member = self.index, self._sheets[index]
        count = min(part.images_per_sheet, part.count - index * part.images_per_sheet)
        try:
            with self._lock:
                content = unpack(self._archive, _bounded(member))
            image = decode(content)
        except (ArchiveError, BadImage) as error:
            raise self.damaged(f"{member.filename} cannot be read: {error}") from error
        if image.size != (part.width, count * part.height):
            raise self.damaged(f"{member.filename} is {image.width}x{image.height} pixels")
        pixels = np.asarray(image.convert("L" if part.channels == 1 else "RGB"))
        return np.ascontiguousarray(pixels.reshape(count * part.height, part.width, part.channels))

    def damaged(self, reason: str) -> UserError:
        """The error for a part that is not as it was written."""
        return UserError(f"{shown(self.path)}: it is damaged ({brief(reason)})", "fetch or pack it again")


def _bounded(member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ArchiveError("it is packed once more; sheets are stored")
    return member


def _read_index(document: Any, location: str) -> Part:
    """The index of a part from its JSON.

    Raises:
        DocumentError: a value is missing, of another type or out of range.
        UserError: the part was written by a later version.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DocumentError(f"{INDEX} is not that of a part")
    if document.get("version") != VERSION:
        version = brief(document.get("version"))
        raise UserError(f"{location}: packed by version {version} of the format, not {VERSION}", "update unistep")
    parts = _number(document, "parts", 1, _MOST_PARTS)
    count = _number(document, "count", 1, MOST_IMAGES)
    labels, names = _labels(document, count, location), _names(document)
    if labels is not None and names is not None and max(labels) >= len(names):
        raise DocumentError(f"the label {max(labels)} in {INDEX} is beyond the names of {len(names)} classes")
    height = _number(document, "height", 1, MAX_PIXELS)
    width = _number(document, "width", 1, MAX_PIXELS)
    return Part(
        part=_number(document, "part", 1, parts),
        parts=parts,
        first=_number(document, "first", 0, _MOST_PARTS * MOST_IMAGES),
        count=count,
        total=_number(document, "total", count, _MOST_PARTS * MOST_IMAGES),
        channels=1 if document.get("channels") == 1 else _number(document, "channels", 3, 3),
        height=height,
        width=width,
        images_per_sheet=_number(document, "images_per_sheet", 1, MAX_PIXELS // (height * width)),
        labels=labels,
        class_names=names,
        sha256=_sum(document, "sha256"),
        dataset=_sum(document, "dataset"),
    )


def _number(document: dict[str, Any], key: str, least: int, most: int) -> int:
    value = document.get(key)
    if type(value) is not int or not least <= value <= most:
        raise DocumentError(f"{key} of {INDEX} is no number from {least:,} to {most:,}")
    return value


def _sum(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise DocumentError(f"{key} of {INDEX} is no SHA-256 sum")
    return value


def _labels(document: dict[str, Any], count: int, location: str) -> list[int] | None:
    labels = document.get("labels")
    if labels is None:
        return None
    if not isinstance(labels, list) or len(labels) != count:
        raise DocumentError(f"{INDEX} does not hold one label for each of {count:,} images")
    return [check_label(label, location, f"image {index:,} of it") for index, label in enumerate(labels)]


def _names(document: dict[str, Any]) -> list[str] | None:
    names = document.get("class_names")
    if names is None:
        return None
    if not isinstance(names, list) or not 0 < len(names) <= MOST_LABEL + 1 or not all(type(n) is str for n in names):
        raise DocumentError(f"class_names of {INDEX} is no list of names")
    return names
