"""CIFAR-10 in the layouts that its authors publish: batches as pickles or as binary records, in a folder or a .tar.gz.

No pickle is executed: a batch is a dict of a numpy array and a list, which `unistep.pickle_machine` makes inert data
of. A folder or archive is that of the training images; `test_batch` is a dataset of its own.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unistep.data.classes import check_label
from unistep.data.names import brief, files_in
from unistep.data.raw import HeldReader
from unistep.data.reader import Pixels, Shape
from unistep.data.tar import TarError, members
from unistep.errors import UserError
from unistep.pickle_machine import Class, Function, Names, PickledObject, run
from unistep.text import shown

_SHAPE: Shape = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_BATCH = re.compile(r"(data_batch(_\d{1,4})?|test_batch)(\.bin)?")
_META = ("batches.meta", "batches.meta.txt")
_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
_LOOKED_AT = 16  # members of a .tar
_ARCHIVES = (".tar.gz", ".tgz", ".tar")

_MOST_BATCH = 256 << 20
_MOST_META = 1 << 20
_MOST_UNPACKED = 512 << 20  # of an archive; the published ones unpack to 186 MB
_MOST_INSTRUCTIONS = 1_000_000
_AGAIN = "fetch it again"
_OTHER = "give a folder of images, a .zip or an .npz"


def open_cifar(path: Path, location: str, *, test: bool = False) -> HeldReader | None:
    """Opens CIFAR-10 in a published layout.

    Args:
        path: folder of the batches, or folder around it; archive of it; or one batch.
        location: source as the user wrote it.
        test: whether the test images of a folder or archive are meant, not those of training.

    Returns:
        The reader; None where it is no such folder or file.

    Raises:
        UserError: a batch is damaged.
    """
    if path.is_dir():
        for folder in (path, *(path / name for name in _FOLDERS)):
            files = {file.name: file for file in files_in(folder, _BATCH)}
            if files:
                meta = {file.name: file for file in (folder / name for name in _META) if file.is_file()}
                return _open_half(files | meta, location, test)
        return None
    if path.name.lower().endswith(_ARCHIVES):
        if path.name.lower().endswith(".tar") and not _may_hold_batches(path):
            return None
        found = _unpacked(path, location)
        if not any(map(_BATCH.fullmatch, found)):
            raise UserError(f"{shown(location)}: it holds no batches of CIFAR-10", _OTHER)
        return _open_half(found, location, test)
    if _BATCH.fullmatch(path.name):
        beside = {name: path.with_name(name) for name in _META if path.with_name(name).is_file()}
        return _open_batches({path.name: path}, beside, location, "")
    return None


def _open_half(files: dict[str, Any], location: str, test: bool) -> HeldReader:
    """The batches of a folder or archive that are those of one half."""
    halves = {name: file for name, file in files.items() if _BATCH.fullmatch(name)}
    wanted = {name: file for name, file in halves.items() if name.startswith("test_batch") == test}
    if test and not wanted:
        raise UserError(f"{shown(location)}: it has no test_batch", _AGAIN)
    wanted = wanted or halves  # a folder of the test images alone
    if len({name.endswith(".bin") for name in wanted}) > 1:
        raise UserError(f"{shown(location)}: it holds batches both as pickles and as .bin", "keep one of them")
    left = sorted(set(halves) - set(wanted))
    passed = f"{shown(location)}: {left[0]} is passed over; it is a dataset of its own" if left and not test else ""
    return _open_batches(wanted, files, location, passed)


def _open_batches(batches: dict[str, Any], others: dict[str, Any], location: str, passed: str) -> HeldReader:
    """The images of batches in the order of their numbers.

    Args:
        batches: file or content of each batch, by name.
        others: files beside them, among which the names of the classes may be.
        location: source as the user wrote it.
        passed: line that tells what is not read.
    """
    arrays, labels, num_bytes = [], [], 0
    for name in sorted(batches, key=_number):
        where = shown(location if PurePosixPath(location).name == name else PurePosixPath(location, name))
        content = _content(batches[name], where, _MOST_BATCH)
        pixels, of_batch = _binary(content, where) if name.endswith(".bin") else _pickled(content, where)
        arrays.append(pixels)
        labels += of_batch
        num_bytes += len(content)
    meta = next((others[name] for name in _META if name in others), None)
    return HeldReader(location, arrays, labels, None if meta is None else _class_names(meta), num_bytes, passed)


def _class_names(file: Path | bytes) -> list[str] | None:
    """The names of the classes; None where the file holds none."""
    content = _content(file, "batches.meta", _MOST_META)
    is_pickle = content[:1] == b"\x80"
    found = (
        _dict(content, "batches.meta").get("label_names") if is_pickle else content.decode("utf-8", "replace").split()
    )
    if not isinstance(found, list):
        return None
    names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in found]
    return names if all(type(name) is str for name in names) else None


def _number(name: str) -> tuple[int, str]:
    number = re.search(r"_(\d+)", name)
    return (int(number[1]) if number else 0), name


def _content(file: Path | bytes, where: str, most_bytes: int) -> bytes:
    if isinstance(file, bytes):
        return file
    try:
        with file.open("rb") as stream:
            content = stream.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{where}: it cannot be read ({error.strerror})", "change its permissions") from error
    if len(content) > most_bytes:
        raise UserError(f"{where}: it has more than {most_bytes:,} bytes, as no batch of CIFAR-10 does", _AGAIN)
    return content


# ---------------------------------------------------------------------------------------------------- batches


def _binary(content: bytes, where: str) -> tuple[Pixels, list[int]]:
    """Pixels and labels of records of a label and 3,072 pixels."""
    if not content or len(content) % (1 + _PIXELS):
        raise UserError(f"{where}: its {len(content):,} bytes are no records of {1 + _PIXELS:,} bytes", _AGAIN)
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return np.ascontiguousarray(records[:, 1:]).reshape(-1, *_SHAPE), records[:, 0].tolist()


def _pickled(content: bytes, where: str) -> tuple[Pixels, list[int]]:
    """Pixels and labels of a pickled dict."""
    batch = _dict(content, where)
    data, labels = batch.get("data"), batch.get("labels")
    try:
        pixels = _array(data)
    except (ValueError, TypeError, IndexError):
        raise UserError(f"{where}: its data is no uint8 array of {_PIXELS:,} pixels an image", _AGAIN) from None
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise UserError(f"{where}: it does not hold one label for each of {len(pixels):,} images", _AGAIN)
    return pixels, [check_label(label, where, f"image {index:,}") for index, label in enumerate(labels)]


def _dict(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = run(io.BytesIO(content), _NAMES, max_instructions=_MOST_INSTRUCTIONS)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # a damaged pickle raises nearly every built-in exception
        raise UserError(
            f"{where}: it is no pickle, or damaged ({brief(error) or type(error).__name__})", _AGAIN
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: it holds no dict, as a batch of CIFAR-10 does", _AGAIN)
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): inner for key, inner in value.items()}


def _array(value: Any) -> Pixels:
    """The array that `numpy.core.multiarray._reconstruct` and its state stand for."""
    if type(value) is not PickledObject or value.class_name != "numpy.ndarray":
        raise ValueError("no array")
    _, shape, dtype, fortran, content = value.state
    if type(dtype) is not PickledObject or dtype.args[0] not in ("u1", "|u1") or fortran is not False:
        raise ValueError("another type")
    content = content.encode("latin-1") if isinstance(content, str) else content
    if len(shape) != 2 or not shape[0] or shape[1] != _PIXELS or len(content) != shape[0] * shape[1]:
        raise ValueError("another shape")
    return np.frombuffer(content, np.uint8).reshape(-1, *_SHAPE)


def _latin(text: Any, encoding: Any) -> bytes:
    """The bytes that Python 3 writes as text, for readers of Python 2."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError("another encoding")
    return text.encode("latin-1")


def _reconstruct(*args: Any) -> PickledObject:
    return PickledObject("numpy.ndarray", args=args)


_NAMES: Names = {
    ("numpy", "ndarray"): Class("numpy.ndarray"),
    ("numpy", "dtype"): Class("numpy.dtype"),
    ("_codecs", "encode"): Function(_latin),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Function(_reconstruct) for core in ("core", "_core")},
}


# ---------------------------------------------------------------------------------------------------- archives


class _Bounded(io.RawIOBase):
    """A stream that ends in an error after so many bytes: a small archive may unpack to any size."""

    def __init__(self, stream: Any, most_bytes: int) -> None:
        self._read, self._left = stream.read, most_bytes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > self._left:
            size = self._left + 1
        content = self._read(size)
        self._left -= len(content)
        if self._left < 0:
            raise tarfile.TarError(f"it unpacks to more than {_MOST_UNPACKED:,} bytes")
        return content


def _may_hold_batches(path: Path) -> bool:
    """Whether a .tar begins with a batch, or is compressed in spite of its name; else it may be one of images."""
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                return True
        return any(_BATCH.fullmatch(PurePosixPath(one.name).name) for one in islice(members(path), _LOOKED_AT))
    except (OSError, TarError):
        return False


def _unpacked(path: Path, location: str) -> dict[str, bytes]:
    """The batches of an archive and the names of their classes, by name; nothing is written to disk."""
    found: dict[str, bytes] = {}
    try:
        with path.open("rb") as file:
            start = file.read(2)
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if start == b"\x1f\x8b" else file
            with tarfile.open(fileobj=_Bounded(stream, _MOST_UNPACKED), mode="r|") as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if not member.isreg() or not (_BATCH.fullmatch(name) or name in _META):
                        continue
                    if name in found:
                        raise tarfile.TarError(f"{brief(name)} is in it twice")
                    stream_of = archive.extractfile(member)
                    if stream_of is not None:
                        found[name] = stream_of.read()
    except Exception as error:  # what tarfile, gzip and zlib raise for damaged bytes
        reason = brief(error) or type(error).__name__
        raise UserError(f"{shown(location)}: it cannot be unpacked ({reason})", f"{_AGAIN}, or {_OTHER}") from error
    return found
