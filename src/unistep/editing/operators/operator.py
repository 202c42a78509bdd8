"""What is known of an image: a linear operator, and the image that lies nearest to an estimate and agrees with it.

A measurement y = A x keeps a part of an image x: some pixels, its luma, the means of its patches. With the
pseudoinverse A+ every estimate x splits into what the measurement says, A+ A x, and the rest, (I - A+ A) x, of which it
says nothing. The editors replace the first part (Song et al. 2023, "Consistency Models", algorithm 4, in the form of
Wang, Yu and Zhang 2022, "Zero-shot image restoration using denoising diffusion null-space model", eq. 9):

    x  ->  A+ y + (I - A+ A) x,    after which    A x = y.

Song et al. write A for an orthogonal basis in which some coordinates are known; then A+ A is the projection on these.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

EXACT = 2e-3
"""How far an image may be from a measurement, in units of [-1, 1]: a quarter of a step of 8 bits."""

ROUNDED = 6e-3
"""The same of a measurement that was rounded to 8 bits: three quarters of a step. Rounding moved it by up to half of
one, and an image that met it better would be fitted to that; the last quarter is for rounding the image."""

_ROUNDS = 1000
_WINDOW = 100  # rounds in which the disagreement must fall by a tenth, or no more are made


@runtime_checkable
class Operator(Protocol):
    """A linear map of images with its pseudoinverse; both take and give batches, and know no state.

    `A(A_pinv(y)) = y` holds for every measurement y of an image, and `A_pinv(A(x))` is the orthogonal projection of x.
    Measurements are scaled like images: |A x| does not much exceed the largest |x|.
    """

    name: str
    """As tasks and sheets call it."""

    def A(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B *M"]:
        """The measurement of images."""
        ...

    def A_pinv(self, y: Float[Tensor, "B *M"]) -> Float[Tensor, "B C H W"]:
        """The image of least norm with a measurement."""
        ...


def agree(operator: Operator, x: Float[Tensor, "B C H W"], known: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The images nearest to x that agree with a measurement y; `known` is A+ y."""
    return known + x - operator.A_pinv(operator.A(x))


def agree_in_range(
    operator: Operator, x: Float[Tensor, "B C H W"], y: Float[Tensor, "B *M"], tolerance: float = EXACT
) -> Float[Tensor, "B C H W"]:
    """Images near x that agree with y and lie in [-1, 1], as far as there are such.

    Clamping what agrees would undo some of the agreement, and making it agree again would leave the range. Taking turns
    is projected gradient descent on |A+ (A x - y)|^2, with momentum (FISTA; Beck and Teboulle 2009), without which
    masks are met at once but blurs not in thousands of rounds. It ends when x is within `tolerance` of agreeing, both
    as the largest error of A x and as the root mean square of the pixels' way to agreement, or when it comes no nearer;
    every image by itself. Of a y that no image has, A A+ y is met.
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
    """How far images are from a measurement: the root mean square of A x - y."""
    return (operator.A(x) - y).flatten(1).square().mean(dim=1).sqrt()
