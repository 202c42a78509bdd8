"""WebDataset's shards as a source of images: a folder of `.tar`, one of them, or `name-{000000..000123}.tar`.

Nothing is unpacked. Images lie in the order of the shards' names and of their members, and are read at any position by
an index (`unistep.data.shard_index`). The class of an image is in the `.cls`, `.json` or `.txt` beside it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from unistep.checks import user_path
from unistep.data.classes import MOST_LABEL, check_classes, check_label, class_order
from unistep.data.encoded import EncodedReader
from unistep.data.inventory import is_image_name
from unistep.data.labels import labels_from_folders
from unistep.data.names import brief, files_in, is_litter
from unistep.data.reader import BadImage, Labels, Shape
from unistep.data.samples import IS_HUGE, IS_SPARSE, NO_LABEL
from unistep.data.shard_index import ShardIndex, shard_index
from unistep.data.splits import has_splits, of_one_split
from unistep.documents import read_json
from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.text import shown

_LOG = logging.getLogger(__name__)

ABOUT = "dataset.json"
"""Name of the file beside packed shards that describes them."""

PACKING = ".packing"
"""Name of the folder beside shards that are not all there yet."""

_TAR = re.compile(r"(?is).+\.tar")
_PACKED_TAR = re.compile(r"(?is).+\.(tar\.(gz|bz2|xz|zst)|tgz)")
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_CLASS_FILES = ("classes.txt", "classnames.txt")
_MOST_SHARDS, _MOST_CLASSES_BYTES = 100_000, 64 << 20
_MOST_OPEN = 128


def open_shards(path: Path, location: str, cache_dir: Path | None = None) -> ShardReader | None:
    """Opens a `.tar` of images, or a folder of them.

    Args:
        path: file or folder.
        location: source as the user wrote it.
        cache_dir: folder in which the index is kept; None is the user's cache.

    Returns:
        The reader; None where there are no shards.

    Raises:
        UserError: a shard is compressed or cannot be read, or the folder holds several splits.
    """
    if path.is_file():
        if _PACKED_TAR.fullmatch(path.name):
            raise UserError(f"{shown(location)}: images are read from .tar files alone", "unpack it to a .tar first")
        return ShardReader([path], location, cache_dir) if _TAR.fullmatch(path.name) else None
    files = files_in(path, _TAR)
    if not files or _holds_images(path):
        return None
    if (path / PACKING).is_dir():
        raise UserError(
            f"{shown(location)}: its packing was broken off or goes on", "repeat the same unistep data pack"
        )
    line = ""
    if has_splits(files):
        files, line = of_one_split(files, location)
    return ShardReader(files, location, cache_dir, line)


def open_listed(location: str, cache_dir: Path | None = None) -> ShardReader | None:
    """Opens shards that are listed by a range, as `name-{000000..000123}.tar`, or by `::` between their names.

    Args:
        location: source as the user wrote it.
        cache_dir: folder in which the index is kept; None is the user's cache.

    Returns:
        The reader; None where the source is no such list.

    Raises:
        UserError: a shard is not there, is no `.tar` or cannot be read, or there are too many.
    """
    if not ("::" in location or _RANGE.search(location)) or os.path.lexists(user_path(location)):
        return None
    names = [name for one in location.split("::") if one for name in _expanded(one, location)]
    if not all(_TAR.fullmatch(name) for name in names):
        return None
    paths = [user_path(name) for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        others = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(f"{shown(missing[0])}{others} of {len(paths):,} shards are missing", "fetch them, or list less")
    return ShardReader(paths, location, cache_dir)


class ShardReader(EncodedReader):
    """The images of a set of shards.

    Args:
        paths: the shards, in order.
        location: source as the user wrote it.
        cache_dir: folder in which the index is kept; None is the user's cache.
        passed: line that tells which files are not read; empty if all are.

    Raises:
        UserError: a shard cannot be read, or none holds an image.
    """

    files: TarFiles

    def __init__(self, paths: Sequence[Path], location: str, cache_dir: Path | None = None, passed: str = "") -> None:
        for path in paths:
            check_regular_file(path, "give .tar files of images")
        self.index = shard_index(paths, cache_dir)
        self._folder, self._passed = paths[0].parent, passed
        if not len(self.index) and self.index.about.faults:
            name, reason = self.index.about.faults[0]
            raise UserError(
                f"{shown(location)}: {brief(name)} is damaged or no tar archive ({reason})", "fetch it again"
            )
        super().__init__(TarFiles(self.index, location))
        self.faults = [(name, reason) for name, reason in self.index.about.faults]

    def passed_over(self) -> str:
        return self._passed or super().passed_over()

    def labels(self) -> Labels | None:
        index, about = self.index, self.index.about
        if about.bad_label:
            raise UserError(
                f"{shown(self.location)}: {about.bad_label}; a class number or name is looked for",
                "mend it, or leave labels unread with `use_labels=False`",
            )
        without = np.flatnonzero(index.labels == NO_LABEL)
        if len(without) == len(index):
            return self._by_folders()
        if about.only_texts and 2 * len(about.texts) > len(index):
            _LOG.warning("%s: its .txt files are captions and no classes: the images have none", shown(self.location))
            return None
        if len(without):
            first, counts = brief(index.name(int(without[0]))), f"{len(without):,} of {len(index):,} images have none"
            raise UserError(
                f"{shown(self.location)}: {first} has no class beside it ({counts}); label them or leave labels unread"
                " with `use_labels=False`"
            )
        given = class_names_beside(self._folder)
        if not all(re.fullmatch(r"-?[0-9]{1,18}", text) for text in about.texts):
            names = class_order(set(about.texts), self.location)
            if given is not None and set(names) <= set(given) and len(set(given)) == len(given):
                names = given
            number = {name: place for place, name in enumerate(names)}
            own = np.array([number[text] for text in about.texts], np.int64)
            return check_classes(Labels(own[index.labels], names), self.location)
        own = np.array([check_label(int(text), shown(self.location), "an image") for text in about.texts], np.int64)
        if given is not None and len(given) <= int(own.max()):
            _LOG.warning("%s: %d names of classes are fewer than there are", shown(self._folder), len(given))
            given = None
        return check_classes(Labels(own[index.labels], given), self.location)

    def stated_shape(self) -> Shape | None:
        """Channels, height and width of the images as the packing stated them; None where it did not prepare them."""
        path = self._folder / ABOUT
        if not path.is_file():
            return None
        about = read_json(path, "remove it", most_bytes=_MOST_CLASSES_BYTES)
        if not isinstance(about, dict) or about.get("prepared") is not True:
            return None
        shape = about.get("channels"), about.get("height"), about.get("width")
        sizes = {one.get("name"): one.get("bytes") for one in about.get("shards") or () if isinstance(one, dict)}
        paths = map(Path, self.index.about.paths)
        if not all(type(side) is int and 0 < side <= 1 << 16 for side in shape):
            return None
        return shape if all(sizes.get(path.name) == path.stat().st_size for path in paths) else None  # type: ignore[return-value]

    def _by_folders(self) -> Labels | None:
        if not self.index.has_folders:
            return None
        names = [name.partition("/")[2] for name in self.files.names]
        labels = labels_from_folders(names, self.location)
        return None if labels is None else check_classes(labels, self.location)


class TarFiles:
    """The images in a set of shards.

    Args:
        index: places of the images.
        location: source as the user wrote it.
    """

    documents: tuple[str, ...] = ()

    def __init__(self, index: ShardIndex, location: str) -> None:
        self.location, self._index = location, index
        self.names = _Names(index)
        self.sizes: Sequence[int] = index.sizes
        self.passed = index.about.passed
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, index: int, limit: int | None = None) -> bytes:
        state, size = int(self._index.states[index]), int(self._index.sizes[index])
        if state == IS_SPARSE:
            raise BadImage("it is stored as a sparse file")
        if state == IS_HUGE:
            raise BadImage(f"it is a file of {size:,} bytes")
        size = size if limit is None else min(limit, size)
        try:
            content = os.pread(self._shard(int(self._index.shards[index])).file, size, int(self._index.starts[index]))
        except OSError as error:
            raise BadImage(error.strerror or type(error).__name__) from error
        if len(content) < size:
            raise BadImage("its shard was cut off since it was indexed")
        return content

    def read_document(self, name: str, most_bytes: int) -> bytes:
        raise KeyError(name)  # there are none

    def fingerprint(self) -> str:
        return self._index.about.fingerprint

    def _shard(self, number: int) -> _Shard:
        """A shard that is open; those that were read last are kept open."""
        with self._lock:
            shard = self._open.pop(number, None) or _Shard(self._index.about.paths[number])
            self._open[number] = shard
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)  # closed when the last thread that reads from it lets go of it
            return shard


class _Shard:
    """An open file, closed with its last reference."""

    def __init__(self, path: str) -> None:
        self.file = -1
        self.file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.file >= 0:
            os.close(self.file)


class _Names(Sequence[str]):
    """The names of all images, made when they are asked for: a million of them take memory."""

    def __init__(self, index: ShardIndex) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._index.name(one) for one in range(*index.indices(len(self)))]
        return self._index.name(range(len(self))[index])

    def __iter__(self) -> Iterator[str]:
        return map(self._index.name, range(len(self)))


def class_names_beside(folder: Path) -> list[str] | None:
    """The names of classes in the files beside shards, `dataset.json` or `classes.txt`; None where there are none.

    Args:
        folder: folder of the shards.

    Raises:
        UserError: such a file cannot be read, or holds something else.
    """
    remedy = "remove it, or list the names of the classes in it"
    if (folder / ABOUT).is_file():
        document = read_json(folder / ABOUT, remedy, most_bytes=_MOST_CLASSES_BYTES)
        names = document.get("class_names") if isinstance(document, dict) else None
        if names is None:
            return None
        if isinstance(names, list) and 0 < len(names) <= MOST_LABEL + 1 and all(type(name) is str for name in names):
            return names
        raise UserError(f"{shown(folder / ABOUT)}: class_names is no list of names", remedy)
    for name in _CLASS_FILES:
        if (folder / name).is_file():
            check_regular_file(folder / name, remedy, most_bytes=_MOST_CLASSES_BYTES)
            lines = (folder / name).read_bytes().decode("utf-8-sig", "backslashreplace").splitlines()
            names = [line.strip() for line in lines if line.strip()]
            return names or None
    return None


def _holds_images(folder: Path) -> bool:
    """Whether images lie beside the `.tar` files of a folder or below it: the `.tar` files are then no dataset."""
    for _, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not is_litter(name)]
        if any(map(is_image_name, names)):
            return True
    return False


def _expanded(name: str, location: str) -> Iterator[str]:
    """The names of a range, with as many digits as its ends."""
    match = _RANGE.search(name)
    if match is None:
        yield name
        return
    first, last, width = int(match[1]), int(match[2]), len(match[1])
    if not first <= last < first + _MOST_SHARDS:
        raise UserError(f"{shown(location)}: {match[0]} is no range of 1 to {_MOST_SHARDS:,} shards")
    for number in range(first, last + 1):
        yield from _expanded(f"{name[: match.start()]}{number:0{width}d}{name[match.end() :]}", location)
