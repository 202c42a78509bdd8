"""Sheets: several grids in one PNG, each under a heading."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unistep.images.grid import grid, save_png, to_pil

_HEADING = 26


class Panel(NamedTuple):
    """Images [N, C, H, W] uint8 in `columns` columns under `heading`."""

    heading: str
    images: Tensor
    columns: int


def save_sheet(panels: Sequence[Panel], path: Path, *, panel_width: int = 620) -> Path:
    """Writes the panels one below the other, each enlarged by a whole factor to about `panel_width`."""
    pictures = []
    for panel in panels:
        picture = to_pil(grid(panel.images, panel.columns)).convert("RGB")
        factor = max(1, round(panel_width / picture.width))
        pictures.append(picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST))
    width = max(p.width for p in pictures)
    sheet = Image.new("RGB", (width, sum(p.height + _HEADING for p in pictures)), "white")
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(size=15), 0
    for panel, picture in zip(panels, pictures, strict=True):
        draw.text((4, top + 4), panel.heading, fill="black", font=font)
        sheet.paste(picture, (0, top + _HEADING))
        top += _HEADING + picture.height
    return save_png(sheet, path)
