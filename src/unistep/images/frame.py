"""Places of images in the pixels that a model works on; nothing is stretched.

Ways to fit an image of another size, `Fit`:

    crop    the largest central part of the model's proportions, resized (Lanczos, antialiased)
    resize  the whole image, resized; refused where its proportions are others than the model's
    pad     the whole image, resized into the middle; the margin is filled with its border and cut off in the end
    tiles   not resized: the model works on overlapping tiles, see `unistep.editing.tiled`; an image smaller than the
            model is enlarged
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from unistep.errors import UserError

Fit = Literal["crop", "resize", "pad", "tiles"]
FITS: tuple[Fit, ...] = get_args(Fit)
Box = tuple[int, int, int, int]

_MOST_PIXELS = 1 << 26  # of what a model works on: with `tiles` that is as large as the image


@dataclass(frozen=True)
class Frame:
    """Place of an image in the pixels that a model works on: `box` of the image becomes `inside` of the target.

    Args:
        source: width and height of the image.
        box: left, upper, right, lower of the part that is taken, in pixels of the image.
        target: width and height of the pixels that the model works on.
        inside: left, upper, right, lower of that part in the target; the rest is margin.
    """

    source: tuple[int, int]
    box: Box
    target: tuple[int, int]
    inside: tuple[int, int, int, int]

    @property
    def inside_size(self) -> tuple[int, int]:
        """Width and height of the image in the target."""
        left, upper, right, lower = self.inside
        return right - left, lower - upper

    @property
    def has_margin(self) -> bool:
        """Whether the image fills only a part of the target."""
        return self.inside_size != self.target

    @property
    def resized(self) -> bool:
        """Whether the image's pixels are resampled."""
        return (self.box[2] - self.box[0], self.box[3] - self.box[1]) != self.inside_size

    def describe(self) -> str:
        """Returns what is done to the image, in words; empty where nothing is."""
        width, height = (self.box[2] - self.box[0], self.box[3] - self.box[1])
        done = []
        if (width, height) != self.source:
            done.append(f"its central {width}x{height} is taken")
        if self.resized:
            verb = "enlarged" if self.inside_size[0] > width else "reduced"
            done.append(f"{verb} to {self.inside_size[0]}x{self.inside_size[1]}")
        if self.has_margin:
            done.append(f"a margin fills {self.target[0]}x{self.target[1]} and is cut off again")
        return ", ".join(done)


def frame(source: tuple[int, int], target: tuple[int, int], fit: Fit, name: str = "the image") -> Frame:
    """Returns the place of an image in the pixels that a model works on.

    Args:
        source: width and height of the image.
        target: width and height of the model's images.
        fit: way to fit the image, see the module's text.
        name: name in messages.

    Raises:
        UserError: the image would be stretched, `fit` is unknown, or the tiles would hold too many pixels.
    """
    (width, height), (goal_width, goal_height) = source, target
    whole: Box = (0, 0, width, height)
    if fit == "crop":
        scale = min(width / goal_width, height / goal_height)
        w, h = (max(1, min(side, round(goal * scale))) for side, goal in zip(source, target, strict=True))
        left, upper = (width - w) // 2, (height - h) // 2
        return Frame(source, (left, upper, left + w, upper + h), target, (0, 0, *target))
    if fit == "resize":
        if not same_proportions(source, target):
            raise UserError(
                f"{name} is {width}x{height} and would be stretched to {goal_width}x{goal_height}",
                'give `fit="crop"`, or pad to keep all of it',
            )
        return Frame(source, whole, target, (0, 0, *target))
    if fit == "pad":
        scale = max(width / goal_width, height / goal_height)
        w, h = (max(1, min(goal, round(side / scale))) for side, goal in zip(source, target, strict=True))
        left, upper = (goal_width - w) // 2, (goal_height - h) // 2
        return Frame(source, whole, target, (left, upper, left + w, upper + h))
    if fit == "tiles":
        scale = max(1.0, goal_width / width, goal_height / height)
        grown = (max(goal_width, round(width * scale)), max(goal_height, round(height * scale)))
        if grown[0] * grown[1] > _MOST_PIXELS:
            raise UserError(
                f"{name} would make {grown[0]}x{grown[1]} pixels of tiles", 'give `fit="crop"`, or a smaller one'
            )
        return Frame(source, whole, grown, (0, 0, *grown))
    raise UserError(f"{fit!r} is unknown", f"give one of {', '.join(FITS)}", field="fit")


def cut_margin(images: Shaped[Tensor, "*N H W"], inside: tuple[int, int, int, int]) -> Shaped[Tensor, "*N h w"]:
    """Returns images or masks without the margin of a frame; `inside` is left, upper, right, lower of the rest."""
    left, upper, right, lower = inside
    return images[..., upper:lower, left:right]


def placed_mask(known: np.ndarray, where: Frame) -> Bool[Tensor, "H W"]:
    """Returns the mask of a target whose margin is False."""
    left, upper, right, lower = where.inside
    placed = torch.zeros(where.target[1], where.target[0], dtype=torch.bool)
    placed[upper:lower, left:right] = torch.from_numpy(np.ascontiguousarray(known))
    return placed


def same_proportions(a: tuple[int, int], b: tuple[int, int], tolerance: float = 0.0) -> bool:
    """Returns whether one size is the other scaled, to less than a pixel of the smaller or a share of its side."""
    (width, height), (of_width, of_height) = sorted((a, b), key=lambda size: size[0] * size[1])
    off_width = abs(width - height * of_width / of_height)
    off_height = abs(height - width * of_height / of_width)
    return off_width < max(1, tolerance * width) and off_height < max(1, tolerance * height)
