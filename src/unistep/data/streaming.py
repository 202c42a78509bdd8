"""Images of shards that are decoded when a batch needs them: neither memory nor disk holds the pixels of all.

What has to be known of all images before, their shape and which of them are broken, is found out once and kept beside
the index of the shards.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import prod
from typing import Any, TypeGuard

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from unistep.data.config import DataConfig
from unistep.data.decode_pool import Asked, DecodePool
from unistep.data.decode_worker import DecodeJob
from unistep.data.parallel import cpu_count
from unistep.data.reader import Reader, Shape, Skipped
from unistep.data.shards import ShardReader
from unistep.errors import UserError
from unistep.text import shown

_MOST_WORKERS = 16
_PIECE = 4096  # images that are asked for at once where all are read
_AHEAD_BYTES, _MOST_AHEAD, _LEAST_AHEAD = 256 << 20, 8, 2


class StreamedImages:
    """Images [N, C, H, W] by their positions, as far as a tensor of uint8 gives them.

    Args:
        job: images, and their preparation.
        kept: position in the shards of each image.
        workers: number of processes that decode.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(self, job: DecodeJob, kept: Int64[np.ndarray, "N"] | range, workers: int) -> None:
        self._job, self._kept, self._workers = job, kept, workers
        self._pool: DecodePool | None = None

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def shape(self) -> torch.Size:
        """Number of images, channels, height and width."""
        return torch.Size((len(self), *self._job.shape))

    def numel(self) -> int:
        """Number of bytes of all pixels."""
        return prod(self.shape)

    def __getitem__(self, index: int | slice) -> Tensor:
        if isinstance(index, int):
            return self.take(torch.tensor([range(len(self))[index]]))[0]
        return self.take(torch.arange(len(self))[index])

    def split(self, size: int) -> Iterator[Tensor]:
        """Yields all images, so many at once."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def take(self, indices: Int64[Tensor, "B"], flips: Bool[Tensor, "B"] | None = None) -> UInt8[Tensor, "B C H W"]:
        """Decodes images and waits for them.

        Args:
            indices: positions of the images.
            flips: whether each image is mirrored left to right; None mirrors none.

        Raises:
            UserError: an image cannot be read, or a process ended or hangs; names shard and member.
        """
        pixels = torch.empty((len(indices), *self._job.shape), dtype=torch.uint8)
        pending: deque[tuple[slice, Asked]] = deque()
        for start in range(0, len(indices), _PIECE):
            part = slice(start, start + _PIECE)
            pending.append((part, self.ask(indices[part], None if flips is None else flips[part])))
            while len(pending) > 1 or (pending and start + _PIECE >= len(indices)):
                done, asked = pending.popleft()
                pixels[done] = self.took(asked)
        return pixels

    def ask(self, indices: Int64[Tensor, "B"], flips: Bool[Tensor, "B"] | None = None) -> Asked:
        """Has images decoded without waiting for them.

        Args:
            indices: positions of the images.
            flips: whether each image is mirrored left to right; None mirrors none.

        Raises:
            IndexError: an index is not in 0 ... N - 1.
        """
        positions = indices.numpy()
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"an index is not in 0 ... {len(self) - 1}")
        if not isinstance(self._kept, range):
            positions = np.asarray(self._kept[positions])
        if self._pool is None:
            self._pool = DecodePool(self._job, self._workers)
        return self._pool.ask(positions, None if flips is None else flips.numpy())

    def took(self, asked: Asked) -> UInt8[Tensor, "B C H W"]:
        """Waits for images that were asked for; see `take`."""
        assert self._pool is not None
        return torch.from_numpy(self._pool.take(asked))

    def drop(self, asked: Asked) -> None:
        """Gives up images that were asked for."""
        assert self._pool is not None
        self._pool.drop(asked)

    def ahead(self, count: int) -> int:
        """Number of batches that are decoded before they are needed.

        Args:
            count: number of images of a batch.
        """
        return max(_LEAST_AHEAD, min(_MOST_AHEAD, _AHEAD_BYTES // max(1, count * self._job.image_bytes)))

    def waiting_for(self) -> str:
        """Shard and member of the image that `took` waits for; empty where it does not wait."""
        return "" if self._pool is None else self._pool.waiting_for()

    def abandon(self) -> None:
        """Kills the processes, without waiting for their end."""
        if self._pool is not None:
            self._pool.abandon()

    def close(self) -> None:
        """Ends the processes; they are started again when images are asked for."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def is_streamed(reader: Reader, config: DataConfig) -> TypeGuard[ShardReader]:
    """Returns whether the images of a source are decoded when they are needed.

    Args:
        reader: reader of the source.
        config: settings of the dataset.

    Raises:
        UserError: this is wanted of a source that is not one of shards.
    """
    if config.stream and not isinstance(reader, ShardReader):
        raise UserError(
            f"is for shards, and {shown(config.source)} is none",
            "make shards of it with unistep data pack, or leave it out",
            field="stream",
        )
    if not isinstance(reader, ShardReader) or config.stream is False:
        return False
    if config.stream:
        return True
    shape, _, _ = _once(reader, config, "shape", lambda: _shape(reader, config))
    return len(reader) * prod(shape) > config.memory_limit


def stream(reader: ShardReader, config: DataConfig) -> tuple[StreamedImages, list[Skipped], list[str]]:
    """The images of shards, decoded when they are needed.

    Args:
        reader: reader of the shards.
        config: preparation of the images.

    Returns:
        The images; those that are left out; and what should be said, a line each.

    Raises:
        UserError: the shards are damaged or their images are of several sizes.
    """
    shape, bits, remarks = _once(reader, config, "shape", lambda: _shape(reader, config))
    job = DecodeJob(str(reader.index.folder), reader.location, tuple(shape), config.resolution, bits)
    skipped: list[Skipped] = []
    kept: Any = range(len(reader))
    if config.skip_bad:
        found = _once(reader, config, "bad", lambda: _bad(reader, tuple(shape), config.resolution))
        skipped = [Skipped(index, text) for index, text in found]
        kept = np.delete(np.arange(len(reader)), [item.index for item in skipped]) if skipped else kept
    return StreamedImages(job, kept, _workers(config)), skipped, remarks


def _shape(reader: ShardReader, config: DataConfig) -> list[Any]:
    stated = reader.stated_shape()
    if stated is not None and config.resolution in (None, stated[1]) and stated[1] == stated[2]:
        return [[config.channels or stated[0], *stated[1:]], 16, []]
    shape = reader.shape(config.resolution, config.channels, config.skip_bad)
    return [list(shape), reader.grey_bits, reader.remarks]


def _bad(reader: ShardReader, shape: Shape, resolution: int | None) -> list[list[Any]]:
    """The images that cannot be read: all are decoded once."""
    skipped: list[Skipped] = []
    for _ in reader.blocks(shape, resolution, skipped):
        pass
    if len(skipped) == len(reader):
        raise UserError(f"{shown(reader.location)}: none of its {len(reader)} images can be read")
    return [[item.index, item.text] for item in skipped]


def _once(reader: ShardReader, config: DataConfig, what: str, find: Callable[[], list[Any]]) -> list[Any]:
    """A finding about all images, kept from an earlier time with the same settings, or made now."""
    name = f"{what}-{config.resolution}-{config.channels}-{config.skip_bad}.json"
    path = reader.index.folder / name
    try:
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, list):
            return found
    except (OSError, ValueError):
        pass
    found = find()
    temporary = path.with_name(f"{name}.tmp-{uuid.uuid4().hex[:12]}")
    with suppress(OSError):  # it is found out again the next time
        temporary.write_text(json.dumps(found), "utf-8")
        os.replace(temporary, path)
    return found


def _workers(config: DataConfig) -> int:
    if config.workers is not None:
        return config.workers
    try:
        local = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    except ValueError:
        local = 1
    return max(1, min(_MOST_WORKERS, cpu_count() // local))
