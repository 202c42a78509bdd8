"""Prepared images in memory, or in a cache file that is memory-mapped if they are too large for memory.

A cache entry is a folder, named after a hash of the source's fingerprint and of the preparation:

    images.bin    the uint8 pixels [N, C, H, W], nothing else
    index.json    {"shape": [N, C, H, W], "skipped": [[index, "name: reason"], ...], "remarks": ["line", ...]}

It is written under a temporary name and renamed, so that an entry is always whole; processes that prepare the same
dataset at once each write their own, and the first to finish is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unistep.checks import user_path
from unistep.data.cache import cache_root
from unistep.data.config import DataConfig
from unistep.data.reader import Reader, Shape, Skipped
from unistep.errors import UserError
from unistep.text import shown

_FORMAT = 2  # raised whenever the same source and settings would give other pixels
_ABANDONED_SECONDS = 24 * 3600
_IMAGES = "images.bin"
_INDEX = "index.json"


@dataclass(frozen=True)
class _Entry:
    """A whole cache entry."""

    folder: Path
    shape: tuple[int, int, int, int]
    skipped: list[Skipped]
    remarks: list[str]


def load_images(reader: Reader, config: DataConfig) -> tuple[Tensor, list[Skipped], list[str], str]:
    """Reads and prepares the images of a source, or takes them from the cache.

    Args:
        reader: reader of the source.
        config: preparation of the images, and limits of cache and memory.

    Returns:
        The images, uint8 [N, C, H, W]; those that were left out; what was done and should be said, a line each; and the
        file that the images are mapped from, empty where they are in memory.

    Raises:
        UserError: an image is bad (and `skip_bad` is false) or all are, their sizes differ, or there is no room for
            them.
    """
    folder = _cache_folder(config)
    key = _key(reader, config) if folder.is_dir() else None
    entry = _find(folder / key, config) if key is not None else None
    if entry is None:
        shape = reader.shape(config.resolution, config.channels, config.skip_bad)
        if len(reader) * prod(shape) <= config.memory_limit:
            return *_read_into_memory(reader, config, shape), ""
        entry = _write(folder / (key or _key(reader, config)), reader, config, shape)
    path = entry.folder / _IMAGES
    mapped = prod(entry.shape) > config.memory_limit
    if mapped:
        pixels = np.memmap(path, np.uint8, mode="r", shape=entry.shape)
    else:
        pixels = np.fromfile(path, np.uint8).reshape(entry.shape)
    with warnings.catch_warnings():
        # A private writable mapping would count as memory in full, so the mapping is read-only, which PyTorch
        # cannot express and warns of.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(pixels), entry.skipped, entry.remarks, shown(path) if mapped else ""


def _cache_folder(config: DataConfig) -> Path:
    if config.cache_dir is not None:
        return user_path(config.cache_dir)
    return cache_root() / "data"


def _key(reader: Reader, config: DataConfig) -> str:
    parts = (_FORMAT, reader.fingerprint(), config.resolution, config.channels)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _find(folder: Path, config: DataConfig) -> _Entry | None:
    """The entry in `folder`; None if it is missing, damaged, or lacks images that must not be left out."""
    try:
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        num, channels, height, width = index["shape"]
        skipped = [Skipped(position, text) for position, text in index["skipped"]]
        remarks = [str(line) for line in index.get("remarks", [])]
        size = (folder / _IMAGES).stat().st_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if size != num * channels * height * width or (skipped and not config.skip_bad):
        return None
    return _Entry(folder, (num, channels, height, width), skipped, remarks)


def _read_into_memory(reader: Reader, config: DataConfig, shape: Shape) -> tuple[Tensor, list[Skipped], list[str]]:
    skipped: list[Skipped] = []
    try:
        pixels = np.empty((len(reader), *shape), np.uint8)
    except MemoryError as error:
        raise UserError(
            f"{shown(reader.location)}: its images take {len(reader) * prod(shape):,} bytes, more than there is memory;"
            f" have them mapped from disk by a `memory_limit` below that (it is {config.memory_limit})"
        ) from error
    count = 0
    for block in reader.blocks(shape, config.resolution, skipped if config.skip_bad else None):
        pixels[count : count + len(block)] = block
        count += len(block)
    _refuse_empty(reader, count)
    return torch.from_numpy(pixels[:count]), skipped, list(reader.remarks)


def _write(folder: Path, reader: Reader, config: DataConfig, shape: Shape) -> _Entry:
    """Prepares the images into a new cache entry."""
    skipped: list[Skipped] = []
    needed = len(reader) * prod(shape)
    temporary = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:12]}")
    with _writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        free = shutil.disk_usage(folder.parent).free
        if free < needed:
            raise UserError(
                f"{shown(folder.parent)}: the images of {shown(reader.location)} take {needed:,} bytes and {free:,} are"
                " free; choose another disk with `cache_dir` or raise `memory_limit`"
            )
        try:
            temporary.mkdir()
            count = 0
            with open(temporary / _IMAGES, "wb") as file:
                for block in reader.blocks(shape, config.resolution, skipped if config.skip_bad else None):
                    file.write(np.ascontiguousarray(block).data)
                    count += len(block)
                file.flush()
                os.fsync(file.fileno())
            _refuse_empty(reader, count)
            index: dict[str, Any] = {"shape": [count, *shape]}
            index["skipped"] = [[item.index, item.text] for item in skipped]
            if reader.remarks:
                index["remarks"] = reader.remarks
            (temporary / _INDEX).write_text(json.dumps(index), "utf-8")
            entry = _find(folder, config) or _publish(temporary, folder, config)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return entry


def _publish(temporary: Path, folder: Path, config: DataConfig) -> _Entry:
    """Gives a finished entry its name, or takes the entry of another process that was faster."""
    if _find(folder, config) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(temporary, folder)
    except OSError:
        entry = _find(folder, config)
        if entry is None:
            raise
        return entry
    entry = _find(folder, config)
    if entry is None:
        raise OSError("it does not keep what is written to it")
    return entry


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{shown(folder)}: the dataset cache cannot be written ({error.strerror or shown(error)}); choose another"
            " place with `cache_dir` or raise `memory_limit`"
        ) from error


def _remove_abandoned(folder: Path) -> None:
    """Removes the leftovers of killed runs; younger files may belong to a run that is still writing."""
    for temporary in folder.parent.glob(f"{folder.name}.tmp-*"):
        try:
            written = max(path.stat().st_mtime for path in (temporary, *temporary.iterdir()))
        except OSError:
            continue
        if time.time() - written > _ABANDONED_SECONDS:
            shutil.rmtree(temporary, ignore_errors=True)


def _refuse_empty(reader: Reader, count: int) -> None:
    if count == 0:
        raise UserError(f"{shown(reader.location)}: none of its {len(reader)} images can be read")
