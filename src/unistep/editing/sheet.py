"""An edit as one picture: a row for every input, with columns original, before, known and after."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unistep.images.grid import to_pil

_CELL, _GAP, _HEADING = 168, 8, 26
_LIGHT, _DARK = 0xE4, 0xC0  # of the squares that stand for what is unknown, as in image editors
_SQUARE = 7


class Row(NamedTuple):
    """One input.

    Args:
        original: whole image that `before` was made of; None where there is none.
        before: image that was given.
        known: measurement as a picture; None where that is `before`.
        mask: True where a pixel is known; None where pixels are not known one by one.
        after: results, best first.
        captions: text under each result; empty for none.
    """

    original: UInt8[Tensor, "_ _ _"] | None
    before: UInt8[Tensor, "_ _ _"]
    known: UInt8[Tensor, "_ _ _"] | None
    mask: Bool[Tensor, "_ _"] | None
    after: Sequence[UInt8[Tensor, "_ _ _"]]
    captions: Sequence[str] = ()


def edit_sheet(rows: Sequence[Row], *, known: str = "known", after: str = "after") -> Image.Image:
    """Returns the sheet; unknown pixels are chequered, columns without a picture are left out.

    Args:
        rows: rows of the sheet.
        known: heading of the measurements.
        after: heading of the results, which are numbered where there are several.
    """
    columns: list[tuple[str, list[Any]]] = [
        ("original", [row.original for row in rows]),
        ("before", [row.before for row in rows]),
        (known, [_known(row) for row in rows]),
    ]
    columns = [(heading, cells) for heading, cells in columns if any(cell is not None for cell in cells)]
    most = max(len(row.after) for row in rows)
    for i in range(most):
        heading = after if most == 1 else f"{after} {i + 1}"
        columns.append((heading, [row.after[i] if i < len(row.after) else None for row in rows]))
    caption = 18 if any(row.captions for row in rows) else 0
    heights = [max(_scaled(cells[i]).height for _, cells in columns) for i in range(len(rows))]
    width = _GAP + len(columns) * (_CELL + _GAP)
    sheet = Image.new("RGB", (width, _HEADING + sum(h + caption + _GAP for h in heights)), "white")
    draw, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    first_result = len(columns) - most
    for number, (heading, cells) in enumerate(columns):
        left, top = _GAP + number * (_CELL + _GAP), _HEADING
        draw.text((left, 4), heading, fill="black", font=font)
        for row, cell, height in zip(rows, cells, heights, strict=True):
            if cell is not None:
                sheet.paste(_scaled(cell), (left, top))
            if 0 <= number - first_result < len(row.captions):
                draw.text((left, top + height + 1), row.captions[number - first_result], fill="black", font=small)
            top += height + caption + _GAP
    return sheet


def _known(row: Row) -> Image.Image | None:
    if row.known is None:
        return None
    picture = _scaled(row.known)
    if row.mask is None:
        return picture
    mask = Image.fromarray(row.mask.cpu().numpy().astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)
    y, x = np.indices((picture.height, picture.width)) // _SQUARE
    squares = np.where((x + y) % 2, _LIGHT, _DARK).astype(np.uint8)
    return Image.composite(picture, Image.fromarray(squares).convert("RGB"), mask)


def _scaled(cell: Tensor | Image.Image | None) -> Image.Image:
    """Returns a cell of about the width of a column: enlarged by a whole factor, or reduced."""
    if cell is None:
        return Image.new("RGB", (1, 1))
    if isinstance(cell, Image.Image):
        return cell
    picture = to_pil(cell).convert("RGB")
    if picture.width > _CELL:
        return picture.resize((_CELL, max(1, round(picture.height * _CELL / picture.width))), Image.Resampling.LANCZOS)
    factor = max(1, _CELL // picture.width)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
