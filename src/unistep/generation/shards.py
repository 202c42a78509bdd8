"""Images on their way to an .npz: files of a few hundred, merged at the end without holding more than one of them.

A shard `000000256-000000512.part` holds images 256 to 511: the CRC-32 of the pixels in four bytes, then the pixels,
uint8 [N, H, W, C]. A shard is written when it has 256 images or is five seconds old, whatever the batch size and the
number of processes; so a run may be resumed with others.
"""

import os
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from unistep.errors import UserError
from unistep.files import whole_file
from unistep.generation.npz import write_npz
from unistep.generation.resumable import ResumableWriter
from unistep.images.grid import save_grid

SHARD_IMAGES = 256
SHARD_SECONDS = 5.0
_NAME = re.compile(r"(\d{9,})-(\d{9,})\.part")
_CRC_BYTES = 4


class Shards(ResumableWriter):
    """Images on their way to the .npz `output`, in a hidden folder beside it.

    Args:
        output: .npz to be written; it need not exist.
        num_images: number of images of the run.
        shape: channels, height, width of an image.
    """

    def __init__(self, output: Path, num_images: int, shape: tuple[int, int, int]) -> None:
        super().__init__(output, shards_folder(output), num_images, shape)
        self._waiting: list[np.ndarray] = []
        self._start = 0
        self._since = 0.0

    def write(self, start: int, images: UInt8[Tensor, "B C H W"]) -> None:
        if self._waiting and start != self._start + sum(map(len, self._waiting)):
            self.flush()
        if not self._waiting:
            self._start, self._since = start, time.monotonic()
        self._waiting.append(images.permute(0, 2, 3, 1).contiguous().numpy())
        if sum(map(len, self._waiting)) >= SHARD_IMAGES or time.monotonic() - self._since >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        pixels = np.concatenate(self._waiting)
        try:
            with whole_file(self._path(range(self._start, self._start + len(pixels)))) as temporary:
                with temporary.open("wb") as file:
                    file.write(_crc(pixels))
                    file.write(pixels.data)
        except OSError as error:
            raise self.unwritable(error) from None
        self._waiting = []

    def stored(self) -> list[range]:
        found = [range(int(m[1]), int(m[2])) for name in os.listdir(self.folder) if (m := _NAME.fullmatch(name))]
        return sorted(found, key=lambda part: part.start)

    def _finish(self, labels: Tensor | None, settings: dict[str, Any]) -> None:
        channels, height, width = self.shape
        merged = self.folder / "merged.tmp"
        write_npz(merged, self._blocks(), (self.num_images, height, width, channels), labels)
        os.replace(merged, self.output)

    def _blocks(self) -> Iterator[UInt8[np.ndarray, "_ H W C"]]:
        for part in self.stored():
            pixels = self._read(part)
            if pixels is None:
                self._path(part).unlink(missing_ok=True)
                raise UserError(f"{self._path(part)} was damaged on the disk and is removed; repeat the command")
            yield pixels

    def _read(self, part: range) -> UInt8[np.ndarray, "_ H W C"] | None:
        """Returns the pixels of a shard; None where it is damaged."""
        channels, height, width = self.shape
        content = self._path(part).read_bytes()
        if len(content) != _CRC_BYTES + len(part) * channels * height * width:
            return None
        pixels = np.frombuffer(content, np.uint8, offset=_CRC_BYTES)
        return pixels.reshape(len(part), height, width, channels) if content[:_CRC_BYTES] == _crc(pixels) else None

    def _remove_damaged(self) -> None:
        end = 0
        for part in self.stored():
            if not end <= part.start < part.stop <= self.num_images or self._read(part) is None:
                self._path(part).unlink()
            else:
                end = part.stop

    def _is_ours(self, name: str) -> bool:
        return _NAME.fullmatch(name) is not None

    def _path(self, part: range) -> Path:
        return self.folder / f"{part.start:09d}-{part.stop:09d}.part"


class GridShards(Shards):
    """Images on their way to one grid, which several processes make.

    Args:
        output: .png to be written.
        num_images: number of images of the run.
        shape: channels, height, width of an image.
        columns: columns of the grid.
    """

    def __init__(self, output: Path, num_images: int, shape: tuple[int, int, int], columns: int) -> None:
        super().__init__(output, num_images, shape)
        self.columns = columns

    def _finish(self, labels: Tensor | None, settings: dict[str, Any]) -> None:
        images = np.concatenate(list(self._blocks()))
        save_grid(torch.from_numpy(images).permute(0, 3, 1, 2), self.output, self.columns)


def shards_folder(output: Path) -> Path:
    """Folder of the shards of `output`: `.samples.npz.parts` beside `samples.npz`."""
    return output.with_name(f".{output.name}.parts")


def _crc(pixels: np.ndarray) -> bytes:
    return zlib.crc32(pixels.data).to_bytes(_CRC_BYTES, "big")
