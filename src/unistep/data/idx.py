"""MNIST's IDX files: `train-images-idx3-ubyte` with `train-labels-idx1-ubyte` beside it, gzipped or not."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from pathlib import Path

import numpy as np

from unistep.data.names import brief, files_in
from unistep.data.prepare import MAX_PIXELS
from unistep.data.raw import HeldReader
from unistep.errors import UserError
from unistep.text import shown

_IMAGES = re.compile(r"(.*)images([-._])idx3([-._])ubyte(\.gz)?")
_LABELS = re.compile(r".*labels[-._]idx1[-._]ubyte(\.gz)?")
_TRAINING = re.compile(r"(?i)(.*[-_.])?train[-_.].*")
_UBYTE = 0x08  # the only type that images and labels have
_MOST_BYTES = 4 << 30
_MOST_RATIO = 1040  # of deflate
_AGAIN = "fetch it again"


def open_idx(path: Path, location: str, class_names: tuple[str, ...] | None = None) -> HeldReader | None:
    """Opens IDX files.

    Args:
        path: file of images, or folder with one, or with those of training and test, of which training is meant.
        location: source as the user wrote it.
        class_names: names of the classes; None if they have none.

    Returns:
        The reader; None where it is no such folder or file.

    Raises:
        UserError: a file is damaged, or its labels do not fit.
    """
    if _LABELS.fullmatch(path.name) and path.is_file():
        raise UserError(
            f"{shown(location)}: it holds labels", "give the file of the images, and let this one beside it"
        )
    if _IMAGES.fullmatch(path.name) and path.is_file():
        return _open(path, location, class_names, "")
    if not path.is_dir():
        return None
    # The file that is not packed counts, where both are there.
    found = {file.name.removesuffix(".gz"): file for file in reversed(files_in(path, _IMAGES))}
    names = sorted(found)
    if not names:
        return None
    training = [name for name in names if _TRAINING.fullmatch(name)]
    if len(names) > 1 and len(training) != 1:
        raise UserError(f"{shown(location)}: it holds {', '.join(map(brief, names[:5]))}", "give one of these files")
    chosen = names[0] if len(names) == 1 else training[0]
    others = [name for name in names if name != chosen]
    passed = f"{shown(location)}: {brief(others[0])} is passed over; it is a dataset of its own" if others else ""
    return _open(found[chosen], location, class_names, passed)


def _open(path: Path, location: str, class_names: tuple[str, ...] | None, passed: str) -> HeldReader:
    images = _read(path, 3)
    if 0 in images.shape or images.shape[1] * images.shape[2] > MAX_PIXELS:
        raise UserError(f"{shown(path)}: its shape {images.shape} is not that of images", _AGAIN)
    plain = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    beside = next((file for name in (plain, f"{plain}.gz") if (file := path.with_name(name)).is_file()), None)
    labels, num_bytes = None, path.stat().st_size
    if beside is not None:
        values = _read(beside, 1)
        if len(values) != len(images):
            raise UserError(f"{shown(beside)}: it has {len(values):,} labels for {len(images):,} images", _AGAIN)
        labels = values.tolist()
        num_bytes += beside.stat().st_size
    return HeldReader(location, [images[:, None]], labels, class_names, num_bytes, passed)


def _read(path: Path, axes: int) -> np.ndarray:
    """The array of a file.

    Args:
        path: file.
        axes: number of axes that it must have.

    Raises:
        UserError: it is damaged, or another array.
    """
    where = shown(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = io.BufferedReader(gzip.GzipFile(fileobj=file)) if packed else file
            head = stream.read(4)
            if head[:2] != b"\0\0" or head[2:] != bytes((_UBYTE, axes)):
                raise UserError(f"{where}: it is no IDX file of {axes} axes of bytes", _AGAIN)
            lengths = np.frombuffer(stream.read(4 * axes), ">u4")
            shape = tuple(int(length) for length in lengths)
            count = 1
            for length in shape:
                count *= length
            if len(shape) != axes or count > min(_MOST_BYTES, size * (_MOST_RATIO if packed else 1)):
                raise UserError(f"{where}: it is too short for its shape {shape}", _AGAIN)
            content = stream.read(count)
            if len(content) != count or stream.read(1):
                raise UserError(f"{where}: it does not hold as many bytes as its shape {shape} says", _AGAIN)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: it cannot be read ({brief(error) or type(error).__name__})", _AGAIN) from error
    return np.frombuffer(content, np.uint8).reshape(shape)
