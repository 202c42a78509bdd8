"""One input of `unistep edit`, read and ready."""

from typing import NamedTuple

from torch import Tensor

from unistep.editing.operators.operator import Operator
from unistep.images.read import Picture


class Given(NamedTuple):
    """One input.

    Args:
        name: what its result is called.
        note: what was done to it, for people; empty for nothing.
        before: the pixels that were given, for the sheet.
        y: what is known of it [1, ...], or itself [1, C, H, W] with the noise that it has.
        size: channels, height and width of the result, margins included.
        inside: left, upper, right, lower of the result without margins.
        operator: what y is, for tasks that keep what is known.
        sigma: of the noise in y, for denoising.
        mask: True where a pixel is known; None where that is no matter of pixels.
        clean: what the result is to be compared with; None where nobody has it.
    """

    name: str
    note: str
    before: Tensor
    y: Tensor
    size: tuple[int, int, int]
    inside: tuple[int, int, int, int]
    operator: Operator | None = None
    sigma: float = 0.0
    mask: Tensor | None = None
    clean: Tensor | None = None


def size_of(pixels: Tensor) -> tuple[int, int, int]:
    """Channels, height and width."""
    channels, height, width = pixels.shape[-3:]
    return channels, height, width


def note_of(picture: Picture) -> str:
    """What was done to a picture, with its name."""
    width, height = picture.frame.source
    return f"{picture.name} is {width}x{height}: {picture.note}" if picture.note else ""
