"""Masks: which pixels of an image are known."""

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from unistep.errors import UserError
from unistep.images.frame import Frame, placed_mask, same_proportions
from unistep.images.read import Source, decoded, name_of

_TOLERANCE = 0.01  # of proportions: masks are often scaled by other programs, which round


def read_mask(source: Source, where: Frame, *, name: str | None = None) -> Bool[Tensor, "H W"]:
    """Reads a mask, white where to paint and black where the image stays, as True where a pixel is known.

    A mask of another size than the image's is resized to it by nearest pixels and taken the same way; one of the
    model's size is taken as it is. Grey counts as the nearer of both, transparent as white.

    Args:
        source: file, Pillow image, or pixels.
        where: frame of the image.
        name: name in messages; default: the file's.

    Raises:
        UserError: the mask cannot be read, is of other proportions, or marks nothing or everything.
    """
    name = name or name_of(source, "the mask")
    painted = decoded(source, name, False).image.convert("L")
    if same_proportions(painted.size, where.source, _TOLERANCE):
        scale_x, scale_y = (m / s for m, s in zip(painted.size, where.source, strict=True))
        left, upper, right, lower = where.box
        box = (left * scale_x, upper * scale_y, right * scale_x, lower * scale_y)
        taken = painted.resize(where.inside_size, Image.Resampling.NEAREST, box=box)
        known = placed_mask(np.asarray(taken) < 128, where)
    elif painted.size == where.target:
        known = torch.from_numpy(np.asarray(painted) < 128)
    else:
        raise UserError(
            f"mask {name} is {painted.width}x{painted.height} and fits neither the image's "
            f"{where.source[0]}x{where.source[1]} nor the model's {where.target[0]}x{where.target[1]}; "
            "give one of the same proportions"
        )
    check_mask(known, where, f"mask {name}")
    return known


def check_mask(known: Bool[Tensor, "H W"], where: Frame, name: str) -> None:
    """Refuses a mask by which all pixels are known, or none.

    Raises:
        UserError: all pixels are known, or none.
    """
    size = f"{where.target[0]}x{where.target[1]}"
    left, upper, right, lower = where.inside
    if bool(known[upper:lower, left:right].all()):
        raise UserError(f"{name} marks nothing to paint at {size}; draw white over what is to be painted, and wider")
    if not bool(known.any()):
        raise UserError(f"{name} marks everything at {size}, and nothing is known; draw black over what stays")
