"""Grids of samples as data of the page, small enough that the whole page stays small."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.watching.record import StageRecord

if TYPE_CHECKING:
    from PIL import Image

_NAME = re.compile(r"step-(\d{1,15})\.png")
_MOST_BYTES = 1 << 27
_MOST_PIXELS = 1 << 26
_PNG = b"\x89PNG\r\n\x1a\n"
_LEAST_SIDE = 64


@dataclass(frozen=True, order=True)
class Grid:
    """A grid of samples.

    Args:
        step: number of steps done.
        path: its file.
    """

    step: int
    path: Path


@dataclass(frozen=True)
class Embedded:
    """A grid as a page holds it.

    Args:
        address: `data:` address of the picture.
        width, height: size in pixels that the picture is shown at.
    """

    address: str
    width: int
    height: int


def grids_of(stage: StageRecord, most: int) -> list[Grid]:
    """The grids of a stage over its time: the first, the last, and others between that are twice as late each time.

    Args:
        stage: stage.
        most: largest number of them, at least 1.
    """
    folder = stage.folder / "samples"
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return []
    found = sorted(Grid(int(m[1]), folder / name) for name in names if (m := _NAME.fullmatch(name)))
    return _spread(found, most)


def embedded(grid: Grid, most_bytes: int) -> Embedded | None:
    """A grid as data; None where its file is damaged, or no PNG.

    Args:
        grid: grid.
        most_bytes: size of the file from which it is made smaller.
    """
    from PIL import Image

    try:
        check_regular_file(grid.path, "", most_bytes=_MOST_BYTES)
        content = grid.path.read_bytes()
        if not content.startswith(_PNG):
            return None
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                return None
            picture.load()
            kind = "png"
            if len(content) > most_bytes:
                content, kind = _smaller(picture.convert("RGB"), most_bytes), "jpeg"
            size = picture.size
    except UserError:
        return None
    except Exception:  # of a damaged file Pillow raises nearly anything
        return None
    return Embedded(f"data:image/{kind};base64,{base64.b64encode(content).decode()}", *size)


def _smaller(picture: "Image.Image", most_bytes: int) -> bytes:
    """A picture as a JPEG of at most so many bytes, or of the least size there is."""
    while True:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        size = file.tell()
        if size <= most_bytes or min(picture.size) <= _LEAST_SIDE:
            return file.getvalue()
        scale = min(0.9, 0.95 * (most_bytes / size) ** 0.5)
        picture = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))


def _spread(grids: Sequence[Grid], most: int) -> list[Grid]:
    if len(grids) <= most:
        return list(grids)
    kept, last = {len(grids) - 1}, grids[-1].step
    for i in range(1, most - 1):
        wanted = last / 2**i
        kept.add(min(range(len(grids)), key=lambda j: abs(grids[j].step - wanted)))
    kept |= {0} if most > 1 else set()
    return [grids[i] for i in sorted(kept)]
