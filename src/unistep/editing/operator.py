"""What is known of an image: a linear operator, and the image that lies nearest to an estimate and agrees with it.

A measurement y = A x keeps a part of an image x: some pixels, its luma, the means of its patches. With the
pseudoinverse A+ every estimate x splits into what the measurement says, A+ A x, and the rest, (I - A+ A) x, of which it
says nothing. The editors replace the first part (Song et al. 2023, "Consistency Models", algorithm 4, in the form of Wang, Yu and
Zhang 2022, "Zero-shot image restoration using denoising diffusion null-space model", eq. 9):

    x  ->  A+ y + (I - A+ A) x,    after which    A x = y.

Song et al. write A for an orthogonal basis in which some coordinates are known; then A+ A is the projection on these.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

_ROUNDS = 100
_CLOSE = 1e-3  # in units of [-1, 1]; a step of 8 bits is 7.8e-3


@runtime_checkable
class Operator(Protocol):
    """A linear map of images with its pseudoinverse; both take and give batches, and know no state.

    `A(A_pinv(y)) = y` holds for every measurement y of an image, and `A_pinv(A(x))` is the orthogonal projection of x.
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
    operator: Operator, x: Float[Tensor, "B C H W"], y: Float[Tensor, "B *M"]
) -> Float[Tensor, "B C H W"]:
    """Images near x that agree with y and lie in [-1, 1], as far as there are such.

    Clamping what agrees would undo some of the agreement, so the two projections take turns (von Neumann's alternating
    projections, which converge where the sets meet, as they do for the measurement of an image); the clamp is last.
    """
    known = operator.A_pinv(y)
    for _ in range(_ROUNDS):
        x = agree(operator, x, known).clamp(-1, 1)
        if (operator.A(x) - y).abs().max() < _CLOSE:
            break
    return x


def residual(operator: Operator, x: Float[Tensor, "B C H W"], y: Float[Tensor, "B *M"]) -> Float[Tensor, " B"]:
    """How far images are from a measurement: the root mean square of A x - y."""
    return (operator.A(x) - y).flatten(1).square().mean(dim=1).sqrt()
