"""A process that decodes images of shards into memory that it shares with the process that started it."""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unistep.data.files import full_name
from unistep.data.prepare import decode, fit, to_pixels
from unistep.data.quiet import quiet
from unistep.data.reader import BadImage, Pixels
from unistep.data.shard_index import ShardIndex
from unistep.data.shards import TarFiles
from unistep.data.subprocesses import begin
from unistep.text import shown

TASK = struct.Struct("<qq")
"""A task: number of its place in the shared memory, and number of its images."""

DONE = struct.Struct("<qI")
"""An answer: number of the place, and bytes of the reason that follows; 0 for success."""

STATE_BYTES = mmap.ALLOCATIONGRANULARITY
"""Bytes at the beginning of the shared memory: the image that each worker is at, as int64; -1 for none."""

_MOST_REASON = 2000


@dataclass(frozen=True)
class DecodeJob:
    """The images that workers decode, and what becomes of them.

    Args:
        index: folder of the index of the shards.
        location: source as the user wrote it.
        shape: channels, height and width of every image.
        resolution: side in pixels that images are resized to; None keeps their size.
        bits: number of bits that count in grey images of 16 bits.
    """

    index: str
    location: str
    shape: tuple[int, int, int]
    resolution: int | None
    bits: int

    @property
    def image_bytes(self) -> int:
        """Bytes of an image's pixels."""
        channels, height, width = self.shape
        return channels * height * width

    def place_bytes(self, most_images: int) -> int:
        """Bytes of a place for so many images: their positions, negative for mirrored ones, and their pixels."""
        size = most_images * (8 + self.image_bytes)
        return -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        return asdict(self)


class Decoder:
    """Decodes images of shards by their positions.

    Args:
        job: images, and their preparation.

    Raises:
        OSError, ValueError, KeyError, TypeError: the index cannot be read.
    """

    def __init__(self, job: DecodeJob) -> None:
        self._job = job
        self._files = TarFiles(ShardIndex(Path(job.index)), job.location)

    def decode(self, index: int, mirrored: bool) -> Pixels:
        """Returns the pixels [C, H, W] of an image.

        Args:
            index: position of the image.
            mirrored: whether it is mirrored left to right.

        Raises:
            BadImage: it cannot be read, or is of another size; the message names shard and member.
        """
        job = self._job
        try:
            image = decode(self._files.read(index), side=job.resolution, bits=job.bits)
            pixels = to_pixels(fit(image, job.resolution), job.shape[0])
        except BadImage as error:
            raise BadImage(f"{self.name(index)}: it cannot be read as an image ({error})") from error
        if pixels.shape != job.shape:
            size = f"{pixels.shape[2]}x{pixels.shape[1]}"
            raise BadImage(f"{self.name(index)} is {size}, and the other images {job.shape[2]}x{job.shape[1]}")
        return pixels[:, :, ::-1] if mirrored else pixels

    def name(self, index: int) -> str:
        """The name of an image for messages: shard and member."""
        return full_name(self._files, index)


def main() -> None:
    """Decodes until the input is closed. The first line of the input is the job, as JSON."""
    start, tasks, answers = begin()
    memory, worker, most_images = start["memory"], start["worker"], start["most_images"]
    job = DecodeJob(**{**start["job"], "shape": tuple(start["job"]["shape"])})
    state = np.frombuffer(mmap.mmap(memory, STATE_BYTES), np.int64)
    places: dict[int, NDArray[Any]] = {}
    decoder = Decoder(job)
    with quiet(), suppress(BrokenPipeError):
        while len(task := tasks.read(TASK.size)) == TASK.size:
            number, count = TASK.unpack(task)
            if number not in places:
                size = job.place_bytes(most_images)
                places[number] = np.frombuffer(mmap.mmap(memory, size, offset=STATE_BYTES + number * size), np.uint8)
            reason = b""
            try:
                _decode_all(decoder, job, places[number], count, most_images, state[worker : worker + 1])
            except BadImage as error:
                reason = shown(error).encode()[:_MOST_REASON]
            os.write(answers, DONE.pack(number, len(reason)) + reason)
            state[worker] = -1


def _decode_all(
    decoder: Decoder,
    job: DecodeJob,
    place: NDArray[Any],
    count: int,
    most_images: int,
    at: NDArray[Any],
) -> None:
    positions = place[: 8 * count].view(np.int64)
    pixels = place[8 * most_images :][: count * job.image_bytes].reshape(count, *job.shape)
    for row, position in enumerate(positions.tolist()):
        at[0] = index = position if position >= 0 else -1 - position
        pixels[row] = decoder.decode(index, position < 0)
