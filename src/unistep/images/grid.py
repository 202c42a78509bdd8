"""Grids: many images in one PNG."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from unistep.files import whole_file


def grid(images: UInt8[Tensor, "N C H W"], columns: int, *, gap: int = 2) -> UInt8[Tensor, "C GH GW"]:
    """Returns images row by row on a white ground, `gap` pixels apart."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = torch.full((c, rows * (h + gap) + gap, columns * (w + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    return sheet


def to_pil(image: UInt8[Tensor, "C H W"]) -> Image.Image:
    """Returns a grey (C = 1) or colour (C = 3) Pillow image."""
    array = image.cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def save_grid(images: UInt8[Tensor, "N C H W"], path: Path, columns: int, *, min_width: int = 640) -> Path:
    """Writes the grid as PNG, enlarged by a whole factor to about `min_width`; the file appears whole."""
    return save_png(scaled(to_pil(grid(images, columns)), min_width), path)


def scaled(image: Image.Image, min_width: int = 640) -> Image.Image:
    """Returns the image enlarged by a whole factor to about `min_width` pixels."""
    factor = max(1, round(min_width / image.width))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def save_png(image: Image.Image, path: Path) -> Path:
    """Writes a PNG; the file appears whole."""
    with whole_file(path) as temporary:
        image.save(temporary, format="PNG")
    return path
