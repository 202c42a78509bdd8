"""A folder of PNGs with its labels: 000000.png, 000001.png, ... and EDM's `dataset.json`.

    {"labels": [["000000.png", 3], ["000001.png", 7], ...], "made_by": "unistep sample", "settings": {...}}

("labels" is null for images without classes). So the folder, or a zip of it, is a source of training data as it is.
PNGs are made in the hidden folder `.parts` within, and moved up when all are there: what a former run left in the
folder is replaced only then. `dataset.json` goes first and comes last: where it is, the images belong together.
"""

import contextlib
import json
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from unistep.errors import UserError
from unistep.files import whole_file
from unistep.generation.resumable import ResumableWriter, runs
from unistep.images.grid import to_pil

_NAME = re.compile(r"(\d{6,})\.png")
_MOVING = "moving"
_JSON = "dataset.json"
_MADE_BY = "unistep sample"
_FIRST_BYTES, _LAST_BYTES = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82"
# Half the time of Pillow's default for files a tenth larger.
_COMPRESS_LEVEL = 1


class PngFolder(ResumableWriter):
    """Images on their way to the folder `output`; encoded by threads, while the next batch is made.

    Args:
        output: folder to be written; it need not exist.
        num_images: number of images of the run.
        shape: channels, height, width of an image.
    """

    def __init__(self, output: Path, num_images: int, shape: tuple[int, int, int]) -> None:
        super().__init__(output, output / ".parts", num_images, shape)
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: list[Future[None]] = []

    def claim(self, settings: dict[str, Any], *, restart: bool = False) -> int:
        self._refuse_a_strangers_folder()
        return super().claim(settings, restart=restart)

    def write(self, start: int, images: UInt8[Tensor, "B C H W"]) -> None:
        self.flush()  # one batch is encoded while another is made, no more: memory stays small
        self._pool = self._pool or ThreadPoolExecutor(min(16, os.cpu_count() or 1))
        self._waiting = [self._pool.submit(self._write_one, start + i, image) for i, image in enumerate(images)]

    def flush(self) -> None:
        try:
            while self._waiting:
                self._waiting[-1].result()
                self._waiting.pop()
        except OSError as error:
            raise self.unwritable(error) from None

    def stored(self) -> list[range]:
        if (self.folder / _MOVING).exists():
            return [range(self.num_images)]
        return list(runs(sorted(_numbers(self.folder))))

    def discard(self) -> None:
        super().discard()
        with contextlib.suppress(OSError):  # it holds images
            self.output.rmdir()

    def _write_one(self, number: int, image: Tensor) -> None:
        with whole_file(self.folder / self._name(number)) as temporary:
            to_pil(image).save(temporary, format="PNG", compress_level=_COMPRESS_LEVEL)

    def _finish(self, labels: Tensor | None, settings: dict[str, Any]) -> None:
        (self.folder / _MOVING).touch()
        (self.output / _JSON).unlink(missing_ok=True)
        for number in _numbers(self.folder):
            os.replace(self.folder / self._name(number), self.output / self._name(number))
        names = [self._name(i) for i in range(self.num_images)]
        for number in _numbers(self.output):
            if number >= self.num_images:
                (self.output / self._name(number)).unlink()
        pairs = None if labels is None else list(zip(names, labels.tolist(), strict=True))
        with whole_file(self.output / _JSON) as temporary:
            temporary.write_text(json.dumps({"labels": pairs, "made_by": _MADE_BY, "settings": settings}))

    def _remove_damaged(self) -> None:
        if (self.folder / _MOVING).exists():
            return
        for number in _numbers(self.folder):
            path = self.folder / self._name(number)
            if number >= self.num_images or path.name != self._name(number) or not _is_whole(path):
                path.unlink()

    def _is_ours(self, name: str) -> bool:
        return name == _MOVING or _NAME.fullmatch(name) is not None

    def _refuse_a_strangers_folder(self) -> None:
        """Other people's images may have the names that these get."""
        try:
            visible = sorted(name for name in os.listdir(self.output) if not name.startswith("."))
        except FileNotFoundError:
            return
        except OSError as error:
            raise self.unwritable(error) from None
        if not visible or self.folder.exists() or _made_here(self.output / _JSON):
            return
        raise UserError(f"{self.output} holds {visible[0]}, which is not of this command; choose another `output`")

    def _name(self, number: int) -> str:
        return f"{number:06d}.png"


def read_png_folder(folder: Path, num_images: int, shape: tuple[int, int, int]) -> UInt8[Tensor, "N C H W"]:
    """Reads the images of a finished folder.

    Args:
        folder: folder that `PngFolder` finished.
        num_images: number of images.
        shape: channels, height, width.
    """
    pixels = torch.empty(num_images, *shape, dtype=torch.uint8)
    for i in range(num_images):
        with Image.open(folder / f"{i:06d}.png") as image:
            array = torch.from_numpy(np.array(image))
        pixels[i] = array[None] if array.ndim == 2 else array.permute(2, 0, 1)
    return pixels


def _numbers(folder: Path) -> list[int]:
    return [int(m[1]) for name in os.listdir(folder) if (m := _NAME.fullmatch(name))]


def _is_whole(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(_FIRST_BYTES)) == _FIRST_BYTES:
            file.seek(-len(_LAST_BYTES), os.SEEK_END)
            return file.read() == _LAST_BYTES
    return False


def _made_here(path: Path) -> bool:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("made_by") == _MADE_BY
