"""Distances between two batches of images: (a, b), each [B, C, H, W], to one number per image [B].

l1, l2 and l2_32 are those of the published consistency model code (means over the pixels; l2 is squared).
pseudo_huber is that of Song and Dhariwal 2023, "Improved Techniques for Training Consistency Models", eq. 7:

    d(a, b) = sqrt(||a - b||^2 + c^2) - c,   ||.|| the norm of the whole image, not of a pixel
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def l1(a: Float[Tensor, "B C H W"], b: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """The mean absolute difference."""
    return (a - b).abs().flatten(1).mean(1)


def l2(a: Float[Tensor, "B C H W"], b: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """The mean squared difference."""
    return (a - b).square().flatten(1).mean(1)


def l2_32(a: Float[Tensor, "B C H W"], b: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """The mean squared difference after both images are resized to 32 x 32 (bilinear, without antialiasing)."""
    a, b = (functional.interpolate(x, size=32, mode="bilinear") for x in (a, b))
    return l2(a, b)


def pseudo_huber(a: Float[Tensor, "B C H W"], b: Float[Tensor, "B C H W"], c: float = 0.0) -> Float[Tensor, " B"]:
    """The pseudo-Huber distance, quadratic below `c` and linear above.

    Args:
        a, b: images.
        c: constant; 0 is the Euclidean norm, whose gradient at a = b is 0, not NaN.
    """
    difference = (a - b).flatten(1)
    if c == 0:
        return torch.linalg.vector_norm(difference, dim=1)
    # sqrt(s + c^2) - c without its cancellation where s is far below c^2.
    squared = difference.square().sum(1)
    return squared / ((squared + c**2).sqrt() + c)


def pseudo_huber_c(dim: int) -> float:
    """The paper's c for images of `dim` = C * H * W numbers: 0.00054 sqrt(dim)."""
    return 0.00054 * math.sqrt(dim)
