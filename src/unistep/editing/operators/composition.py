"""One operator after another: A = A2 A1, such as the patches of the luma, or some pixels of a blurred image.

Where the rows of A1 are orthogonal and of one length (A1 is `tight`: A1 A1^T = c I, as of masks, luma, patches and
random bases), the pseudoinverse of the product is that of its parts in the other order, A+ = A1+ A2+. Where they are
not, as of a blur, A1 A1+ A2+ y need not be A2+ y, for A1 cannot make every image that A2+ asks for. Then

    A+ y = A^T (A A^T)+ y

If the parts do the same everywhere (they are `stationary`, as luma, patches and a blur that wraps around are), A A^T is
a convolution of the measurement, and division in the Fourier basis inverts it (Zhao et al. 2016, "Fast single image
super-resolution using a new analytical solution for l2-l2 problems"). Otherwise, as for some pixels of a blurred image,
conjugate gradients do (CGLS; Hestenes and Stiefel 1952; Bjoerck 1996, "Numerical Methods for Least Squares Problems",
7.4).

A+ A is the orthogonal projection, and A A+ y = y for every y that some image has. Of another y, which a blur wider
than the patches after it can leave, A+ takes the nearest that some image has. Where the iteration is needed, all this
holds up to its accuracy. Many pixels of a blurred image are so nearly dependent that it is cut short: then A A+ y = y
within a few 1e-3, and A+ A is a projection no longer (applied again it may change a pixel by 0.1).
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from unistep.editing.operators.operator import Operator
from unistep.errors import UserError

_NULL = 1e-9  # eigenvalues of A A^T below this share of the largest are 0 but for rounding
_ITERATIONS = 200
_ACCURACY = 1e-9  # of A^T (y - A x), relative to A^T y


@runtime_checkable
class Part(Operator, Protocol):
    """An operator that can be composed with others."""

    tight: bool
    """Whether A A^T is a multiple of the identity: the rows of A are orthogonal and of one length."""

    stationary: bool
    """Whether the measurement is an image, and an image moved by a pixel of it (around the borders) has it moved."""

    def A_T(self, y: Float[Tensor, "B *M"]) -> Float[Tensor, "B C H W"]:
        """Applies the transpose of A."""
        ...


class Composition:
    """Measures with `second` what `first` measured.

    Args:
        first: operator whose measurement is an image [B, C, H, W], as luma, patches and blurred images are.
        second: operator of such images.
    """

    def __init__(self, first: Part, second: Part) -> None:
        self.first, self.second = first, second
        self.name = f"{first.name} + {second.name}"
        self.tight = first.tight and second.tight
        self.stationary = first.stationary and second.stationary

    def A(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B *M"]:
        """Returns the second measurement of the first.

        Raises:
            UserError: the first measurement is no image, or none that the second operator takes.
        """
        between = self.first.A(x)
        if between.ndim != 4:
            raise UserError(f"{self.first.name} measures no image that {self.second.name} could take: put it last")
        return self.second.A(between)

    def A_pinv(self, y: Float[Tensor, "B *M"]) -> Float[Tensor, "B C H W"]:
        """Returns the image of least norm with the measurement y, or with the nearest to y that an image has."""
        if self.first.tight:
            return self.first.A_pinv(self.second.A_pinv(y))
        if self.stationary:
            return self._by_division(y)
        return _least_squares(self.A, self.A_T, y)

    def A_T(self, y: Float[Tensor, "B *M"]) -> Float[Tensor, "B C H W"]:
        """Applies the transpose of A."""
        return self.first.A_T(self.second.A_T(y))

    def _by_division(self, y: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        wide = y.to(_widest(y))
        point = torch.zeros_like(wide[:1])
        point[:, 0, 0, 0] = 1
        eigenvalues = torch.fft.rfft2(self.A(self.A_T(point))[:, :1]).real
        kept = eigenvalues > _NULL * eigenvalues.max()
        spectrum = torch.fft.rfft2(wide) * torch.where(kept, 1 / eigenvalues, 0)
        return self.A_T(torch.fft.irfft2(spectrum, s=(y.shape[2], y.shape[3]))).to(y.dtype)


def _least_squares(
    A: Callable[[Tensor], Tensor], A_T: Callable[[Tensor], Tensor], y: Float[Tensor, "B *M"]
) -> Float[Tensor, "B C H W"]:
    """Solves A^T A x = A^T y by conjugate gradients from 0; every image stops by itself."""
    rest = y.to(_widest(y))
    gradient = A_T(rest)
    x, direction, size = torch.zeros_like(gradient), gradient, _squares(gradient)
    enough = size * _ACCURACY**2
    for _ in range(_ITERATIONS):
        active = size > enough
        if not active.any():
            break
        moved = A(direction)
        step = torch.where(active, size / _squares(moved), 0)
        x = x + _expand(step, x) * direction
        rest = rest - _expand(step, rest) * moved
        gradient = A_T(rest)
        before, size = size, torch.where(active, _squares(gradient), size)
        direction = gradient + _expand(torch.where(active, size / before, 0), direction) * direction
    return x.to(y.dtype)


def _squares(x: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    return x.flatten(1).square().sum(dim=1)


def _expand(numbers: Float[Tensor, " B"], like: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
    return numbers.view(-1, *(1 for _ in like.shape[1:]))


def _widest(like: Tensor) -> torch.dtype:
    # Apple's GPUs have no double precision.
    return torch.float32 if like.device.type == "mps" else torch.float64
