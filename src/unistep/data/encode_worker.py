"""A process that prepares images for shards: decoded, cut, resized, and encoded again without loss."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from unistep.data.formats import open_image
from unistep.data.prepare import composite_on_white, decode, fit
from unistep.data.quiet import quiet
from unistep.data.reader import BadImage
from unistep.data.subprocesses import begin
from unistep.text import shown

SIZES = struct.Struct("<II")
"""Before a message: number of its images, and bytes of all that follows."""

_OF_IMAGE = struct.Struct("<5sHHBI")  # ending, width, height, channels, bytes of the content
_BAD = "bad"
_MOST_REASON = 2000
_WEBP_SIDE = 16_383
# Ten times as fast as the smallest files, which are 3% smaller at best.
_WEBP: dict[str, Any] = {"lossless": True, "quality": 25, "method": 1, "exact": True}
_KEPT = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@dataclass(frozen=True)
class EncodeJob:
    """The preparation of images for shards.

    Args:
        resolution: side in pixels that images are resized to; None keeps their size.
        channels: 1 or 3; None keeps those of each image.
        bits: number of bits that count in grey images of 16 bits.
        native: channels, height and width of images that come as plain pixels; None for encoded ones.
    """

    resolution: int | None
    channels: int | None
    bits: int = 16
    native: tuple[int, int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        return asdict(self)


class Encoded(NamedTuple):
    """An image as it stands in a shard.

    Args:
        ending: png, jpg or webp; "bad" for one that cannot be read.
        width, height, channels: shape; 0 for one that cannot be read.
        content: encoded image, or the reason why it cannot be read.
    """

    ending: str
    width: int
    height: int
    channels: int
    content: bytes

    @property
    def reason(self) -> str | None:
        """The reason why it cannot be read; None if it can."""
        return self.content.decode("utf-8", "replace") if self.ending == _BAD else None

    @classmethod
    def bad(cls, reason: object) -> Encoded:
        """An image that cannot be read.

        Args:
            reason: reason in one line.
        """
        return cls(_BAD, 0, 0, 0, shown(reason).encode()[:_MOST_REASON])


def encode(content: bytes, job: EncodeJob) -> Encoded:
    """Prepares an image.

    Args:
        content: file, or plain pixels [C, H, W].
        job: preparation.
    """
    try:
        if job.native is None:
            image = decode(content, side=job.resolution, bits=job.bits)
            if job.resolution is None and job.channels is None and (ending := _kept(content)):
                return Encoded(ending, *image.size, 1 if image.mode == "L" else 3, content)
        else:
            image = _of_pixels(content, job.native)
        image = fit(image, job.resolution)
    except BadImage as error:
        return Encoded.bad(error)
    if job.channels is not None:
        image = image.convert("L" if job.channels == 1 else "RGB")
    held = io.BytesIO()
    # WebP knows no grey images.
    if image.mode == "L" or max(image.size) > _WEBP_SIDE:
        ending = "png"
        image.save(held, "PNG")
    else:
        ending = "webp"
        image.save(held, "WEBP", **_WEBP)
    return Encoded(ending, *image.size, 1 if image.mode == "L" else 3, held.getvalue())


def packed(images: Sequence[bytes]) -> bytes:
    """A task as bytes.

    Args:
        images: files, or plain pixels.
    """
    body = b"".join(len(content).to_bytes(4, "little") + content for content in images)
    return SIZES.pack(len(images), len(body)) + body


def unpacked_answer(count: int, body: bytes) -> list[Encoded]:
    """The images of an answer.

    Args:
        count: number of images.
        body: bytes after the sizes.
    """
    found, place = [], 0
    for _ in range(count):
        ending, width, height, channels, size = _OF_IMAGE.unpack_from(body, place)
        place += _OF_IMAGE.size
        found.append(Encoded(ending.rstrip(b"\0").decode(), width, height, channels, body[place : place + size]))
        place += size
    return found


def main() -> None:
    """Encodes until the input is closed, or nobody takes the answers any more."""
    start, tasks, answers = begin()
    native = start["native"]
    job = EncodeJob(**{**start, "native": None if native is None else tuple(native)})
    with quiet(), suppress(BrokenPipeError), os.fdopen(answers, "wb", buffering=0) as output:
        while len(sizes := tasks.read(SIZES.size)) == SIZES.size:
            count, length = SIZES.unpack(sizes)
            body, place, parts = tasks.read(length), 0, []
            for _ in range(count):
                size = int.from_bytes(body[place : place + 4], "little")
                one = encode(body[place + 4 : place + 4 + size], job)
                place += 4 + size
                parts += [_OF_IMAGE.pack(one.ending.encode(), *one[1:4], len(one.content)), one.content]
            answer = b"".join(parts)
            view = memoryview(SIZES.pack(count, len(answer)) + answer)
            while view:
                view = view[output.write(view) :]


def read_exactly(file: IO[bytes], size: int) -> bytes:
    """Reads so many bytes, or fewer at the end of a file."""
    parts: list[bytes] = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _of_pixels(content: bytes, native: tuple[int, int, int]) -> Image.Image:
    row = np.frombuffer(content, np.uint8).reshape(native)
    image = Image.fromarray(row.transpose(1, 2, 0) if native[0] > 1 else row[0])
    return composite_on_white(image) if image.mode == "RGBA" else image


def _kept(content: bytes) -> str | None:
    """The ending of a file that is copied as it is; None for one of another format."""
    with open_image(content) as image:
        return _KEPT.get(image.format or "")
