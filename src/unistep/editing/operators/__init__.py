"""The operators of editing, one a file, and the table of examples, a row or more each, that tests run over."""

from collections.abc import Callable

import torch

from unistep.editing.operators import mask
from unistep.editing.operators.colorization import Colorization
from unistep.editing.operators.composition import Composition, Part
from unistep.editing.operators.compressed_sensing import CompressedSensing
from unistep.editing.operators.deblurring import GaussianBlur
from unistep.editing.operators.mask import Inpainting, Outpainting
from unistep.editing.operators.super_resolution import SuperResolution

Shape = tuple[int, int, int]
"""Channels, height and width of images."""


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


OPERATORS: dict[str, Callable[[Shape], Part]] = {
    "inpainting, box": lambda shape: Inpainting(mask.centre(shape[1:])),
    "inpainting, random": lambda shape: Inpainting(mask.random(shape[1:], 0.25, _seeded())),
    "inpainting, lower half": lambda shape: Inpainting(mask.lower(shape[1:])),
    "inpainting, left half of the first channel": lambda shape: Inpainting(
        torch.stack([mask.left(shape[1:])] + [torch.ones(shape[1:], dtype=torch.bool)] * (shape[0] - 1))
    ),
    "outpainting": lambda shape: Outpainting(shape[1:], (0, shape[2] // 4, shape[1] // 2, shape[2] // 2)),
    "colorization": lambda shape: Colorization(),
    "super-resolution x2": lambda shape: SuperResolution(2),
    "super-resolution x4": lambda shape: SuperResolution(4),
    "super-resolution x8": lambda shape: SuperResolution(8),
    "super-resolution x1x2": lambda shape: SuperResolution((1, 2)),
    "deblurring sigma 1": lambda shape: GaussianBlur(1.0),
    "deblurring sigma 2": lambda shape: GaussianBlur(2.0),
    "deblurring sigma 1, around the borders": lambda shape: GaussianBlur(1.0, border="wrap"),
    "compressed sensing": lambda shape: CompressedSensing(shape, 0.2, _seeded()),
    "grey patches": lambda shape: Composition(Colorization(), SuperResolution(4)),
    "grey pixels": lambda shape: Composition(Colorization(), Inpainting(mask.random(shape[1:], 0.25, _seeded()))),
    "grey and blurred": lambda shape: Composition(Colorization(), GaussianBlur(1.0)),
    "blurred patches": lambda shape: Composition(GaussianBlur(1.0, border="wrap"), SuperResolution(2)),
    "patches of a wide blur": lambda shape: Composition(GaussianBlur(2.0, border="wrap"), SuperResolution(2)),
}
"""Examples by name: operators for images of a shape.

Each is refused, here or by `A`, with a `UserError` where the shape does not fit: luma of grey images, patches that do
not divide the image, boxes of no pixel.
"""
