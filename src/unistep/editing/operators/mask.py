"""Inpainting and outpainting: the measurement is the pixels that a mask marks as known; and masks.

A x keeps the pixels of x where the mask is True, A+ y puts them back and is 0 elsewhere. The rows of A are unit
vectors, so that A+ is the transpose of A and A+ A sets the unknown pixels to 0.

Masks are boolean, [H, W] for all channels or [1 | C, H, W], and True is known. The functions that make them are named
after what is to be painted: `lower` leaves the upper half known.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unistep.errors import UserError


class Inpainting:
    """Measures the pixels at which a mask is True, channel by channel, row by row.

    Args:
        mask: True where a pixel is known; [H, W] or [1, H, W] for all channels, [C, H, W] for a mask of each.
        name: name of the operator.

    Raises:
        UserError: no pixel is known.
    """

    tight = True
    stationary = False

    def __init__(self, mask: Bool[Tensor, "H W"] | Bool[Tensor, "C H W"], name: str = "inpainting") -> None:
        if not bool(mask.any()):
            raise UserError(
                f"the mask of {name} marks no pixel as known: leave some of the image, or sample without an input"
            )
        self.mask = mask if mask.ndim == 3 else mask[None]
        self.name = name

    def A(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Returns the known pixels.

        Raises:
            UserError: the images have another size, or other channels, than the mask.
        """
        channels, height, width = self.mask.shape
        if tuple(x.shape[2:]) != (height, width) or channels not in (1, x.shape[1]):
            raise UserError(
                f"the mask of {self.name} is {channels}x{height}x{width} (channels, height, width), "
                f"the image {'x'.join(str(n) for n in x.shape[1:])}: give them one size"
            )
        return x[:, self._known(x.shape[1], x)]

    def A_pinv(self, y: Float[Tensor, "B K"]) -> Float[Tensor, "B C H W"]:
        """Returns images with the known pixels y, and 0, which is grey, elsewhere."""
        channels, height, width = self.mask.shape
        if channels == 1:
            channels = y.shape[1] // int(self.mask.sum())
        x = y.new_zeros(len(y), channels, height, width)
        x[:, self._known(channels, y)] = y
        return x

    def A_T(self, y: Float[Tensor, "B K"]) -> Float[Tensor, "B C H W"]:
        """Applies the transpose of A, which is A_pinv."""
        return self.A_pinv(y)

    def _known(self, channels: int, like: Tensor) -> Bool[Tensor, "C H W"]:
        return self.mask.to(like.device).expand(channels, -1, -1)


class Outpainting(Inpainting):
    """Measures a picture inside a larger canvas, of which it keeps the pixels; the rest is inpainted.

    Args:
        canvas: height and width of the images.
        place: top, left, height and width of the picture in the canvas.

    Raises:
        UserError: the picture leaves the canvas.
    """

    def __init__(self, canvas: tuple[int, int], place: tuple[int, int, int, int]) -> None:
        super().__init__(~box(canvas, place), name="outpainting")


def box(size: tuple[int, int], place: tuple[int, int, int, int]) -> Bool[Tensor, "H W"]:
    """Returns a mask in which a box is to be painted.

    Args:
        size: height and width of the images.
        place: top, left, height and width of the box.

    Raises:
        UserError: the box is empty or leaves the image.
    """
    top, left, height, width = place
    if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
        raise UserError(
            f"a box of {height}x{width} pixels at row {top}, column {left} does not lie in {size[0]}x{size[1]} pixels"
        )
    known = torch.ones(size, dtype=torch.bool)
    known[top : top + height, left : left + width] = False
    return known


def centre(size: tuple[int, int], share: float = 0.5) -> Bool[Tensor, "H W"]:
    """Returns a mask in which a box in the middle is to be painted.

    Args:
        size: height and width of the images.
        share: share of the height and of the width that the box takes, in (0, 1], at least a pixel.

    Raises:
        UserError: `share` is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"the share {share:g} of the image's sides must lie in (0, 1]")
    height, width = (max(1, round(share * side)) for side in size)
    return box(size, ((size[0] - height) // 2, (size[1] - width) // 2, height, width))


def random(size: tuple[int, int], share: float, generator: torch.Generator) -> Bool[Tensor, "H W"]:
    """Returns a mask in which random pixels are known.

    Args:
        size: height and width of the images.
        share: share of the pixels that is known, in (0, 1], rounded, at least one pixel.
        generator: generator of the choice.

    Raises:
        UserError: `share` is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"the share {share:g} of known pixels must lie in (0, 1]")
    known = torch.zeros(size[0] * size[1], dtype=torch.bool)
    order = torch.randperm(len(known), generator=generator, device=generator.device).cpu()
    known[order[: max(1, round(share * len(known)))]] = True
    return known.view(size)


def lower(size: tuple[int, int]) -> Bool[Tensor, "H W"]:
    """Returns a mask in which the lower half is to be painted; a row in the middle is known."""
    return box(size, (size[0] - size[0] // 2, 0, size[0] // 2, size[1]))


def upper(size: tuple[int, int]) -> Bool[Tensor, "H W"]:
    """Returns a mask in which the upper half is to be painted; a row in the middle is known."""
    return lower(size).flip(0)


def right(size: tuple[int, int]) -> Bool[Tensor, "H W"]:
    """Returns a mask in which the right half is to be painted; a column in the middle is known."""
    return lower((size[1], size[0])).T


def left(size: tuple[int, int]) -> Bool[Tensor, "H W"]:
    """Returns a mask in which the left half is to be painted; a column in the middle is known."""
    return right(size).flip(1)
