"""Linear operators that measure images, and the image nearest to an estimate that agrees with a measurement.

A measurement y = A x keeps a part of an image x: some pixels, its luma, the means of its patches. With the
pseudoinverse A+ every estimate x splits into the measured part, A+ A x, and the rest, (I - A+ A) x, on which the
measurement does not depend. Editors replace the first part (Song et al. 2023, "Consistency Models", algorithm 4, in the
form of Wang, Yu and Zhang 2022, "Zero-shot image restoration using denoising diffusion null-space model", eq. 9):

    x  ->  A+ y + (I - A+ A) x,    after which    A x = y.

Song et al. write A for an orthogonal basis in which some coordinates are known; then A+ A is the projection on these.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

EXACT = 2e-3
"""Largest distance of an image from its measurement, in units of [-1, 1]: a quarter of a step of 8 bits."""

ROUNDED = 6e-3
"""The same for a measurement that was rounded to 8 bits: three quarters of a step. Rounding moved it by up to half of
one, and an image nearer to it would be fitted to the rounding; the last quarter is for rounding the image."""

_ROUNDS = 1000
_WINDOW = 100  # rounds in which the residual must fall by a tenth, or it ends


@runtime_checkable
class Operator(Protocol):
    """A linear map of images with its pseudoinverse; both map batches to batches, without state.

    `A(A_pinv(y)) = y` holds for every measurement y of an image, and `A_pinv(A(x))` is the orthogonal projection of x.
    Measurements are scaled like images: |A x| does not much exceed the largest |x|.
    """

    name: str
    """Name in messages; its beginning gives the task whose noise levels are the default."""

    def A(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B *M"]:
        """Returns the measurement of images."""
        ...

    def A_pinv(self, y: Float[Tensor, "B *M"]) -> Float[Tensor, "B C H W"]:
        """Returns the image of least norm with a measurement."""
        ...


def agree(operator: Operator, x: Float[Tensor, "B C H W"], known: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Returns the images nearest to x that agree with a measurement y; `known` is A+ y."""
    return known + x - operator.A_pinv(operator.A(x))


def agree_in_range(
    operator: Operator, x: Float[Tensor, "B C H W"], y: Float[Tensor, "B *M"], tolerance: float = EXACT
) -> Float[Tensor, "B C H W"]:
    """Returns images near x that agree with y and lie in [-1, 1], as far as there are such.

    Clamping an image that agrees changes its measurement, and restoring the measurement leaves the range. Alternating
    both is projected gradient descent on |A+ (A x - y)|^2, here with momentum (FISTA; Beck and Teboulle 2009), without
    which a mask takes one round but a blur thousands. It ends when x is within `tolerance`, both as the largest error
    of A x and as the root mean square of A+ (A x - y), or when it comes no nearer; every image by itself. A y that no
    image has is replaced by A A+ y.

    Args:
        operator: operator that measures.
        x: estimates.
        y: measurement.
        tolerance: distance from the measurement at which it ends.
    """
    known = operator.A_pinv(y)
    goal = operator.A(known)
    x = agree(operator, x, known).clamp(-1, 1)
    last, last_way, momentum = x, torch.zeros_like(x), 1.0
    found, least = x, x.new_full((len(x),), torch.inf)
    active, before = least > tolerance, least
    for i in range(_ROUNDS):
        measured = operator.A(x)
        way = known - operator.A_pinv(measured)
        errors, ways = (measured - goal).flatten(1), way.flatten(1)
        apart = torch.maximum(errors.abs().amax(dim=1), ways.square().mean(dim=1).sqrt())
        nearer = active & (apart < least)
        found = torch.where(nearer[:, None, None, None], x, found)
        least = torch.where(nearer, apart, least)
        active = active & (least > tolerance)
        if i % _WINDOW == 0:
            active, before = active & (least < 0.9 * before), least
        if not active.any():
            break
        next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        beyond, momentum = (momentum - 1) / next_momentum, next_momentum
        # The way from a point beyond x needs no further measurement: it is linear.
        ahead = x + beyond * (x - last) + way + beyond * (way - last_way)
        last, last_way, x = x, way, ahead.clamp(-1, 1)
    return found


def residual(operator: Operator, x: Float[Tensor, "B C H W"], y: Float[Tensor, "B *M"]) -> Float[Tensor, " B"]:
    """Returns the distance of images from a measurement: the root mean square of A x - y."""
    return (operator.A(x) - y).flatten(1).square().mean(dim=1).sqrt()
