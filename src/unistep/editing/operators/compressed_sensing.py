"""Compressed sensing: the measurement is some of the image's coefficients in a random orthogonal basis.

The signs of all pixels are flipped at random, the result is transformed by an orthonormal cosine transform along each
axis, and a random choice of its coefficients is kept (a subsampled randomised transform; Do et al. 2012, "Fast and
efficient compressive sensing using structurally random matrices"). Every coefficient then depends on every pixel, and
a basis of n numbers costs n signs instead of an [n, n] matrix.

With n pixels, Q the rows kept and D the signs, A = Q D / sqrt(n), so that |A x| <= max |x|: a number is a mean of the
pixels with signs and weights, as a single-pixel camera takes it. The rows are orthogonal, and A+ = n A^T.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from unistep.errors import UserError


class CompressedSensing:
    """Measures a share of the coefficients of images in a random orthogonal basis.

    Args:
        shape: channels, height and width of the images.
        share: share of the coefficients that is kept, in (0, 1]; their number is rounded, and at least 1.
        generator: generator of the signs and of the choice.

    Raises:
        UserError: `share` is outside (0, 1].
    """

    tight = True
    stationary = False

    def __init__(self, shape: tuple[int, int, int], share: float, generator: torch.Generator) -> None:
        if not 0 < share <= 1:
            raise UserError(f"the share {share:g} of known coefficients must lie in (0, 1]")
        n, device = math.prod(shape), generator.device
        self.signs = 1.0 - 2.0 * torch.randint(2, shape, generator=generator, device=device)
        self.kept = torch.randperm(n, generator=generator, device=device)[: max(1, round(share * n))]
        self.name = f"compressed sensing {share:.0%}"
        self._bases = [_cosines(size) for size in shape]

    def A(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Returns the coefficients that are kept, in the order in which they were chosen.

        Raises:
            UserError: the images have another shape than the basis.
        """
        if x.shape[1:] != self.signs.shape:
            basis, image = ("x".join(str(n) for n in shape) for shape in (self.signs.shape, x.shape[1:]))
            raise UserError(f"{self.name} was made for images of {basis} (channels, height, width), not {image}")
        c, h, w = self._bases_for(x)
        coefficients = torch.einsum("bchw,dc,gh,vw->bdgv", x * self.signs.to(x), c, h, w)
        return coefficients.flatten(1)[:, self.kept.to(x.device)] / math.sqrt(self.signs.numel())

    def A_pinv(self, y: Float[Tensor, "B K"]) -> Float[Tensor, "B C H W"]:
        """Returns the images with these coefficients, the others being 0."""
        coefficients = y.new_zeros(len(y), self.signs.numel())
        coefficients[:, self.kept.to(y.device)] = y * math.sqrt(self.signs.numel())
        c, h, w = self._bases_for(y)
        x = torch.einsum("bdgv,dc,gh,vw->bchw", coefficients.view(-1, *self.signs.shape), c, h, w)
        return x * self.signs.to(x)

    def A_T(self, y: Float[Tensor, "B K"]) -> Float[Tensor, "B C H W"]:
        """Applies the transpose of A."""
        return self.A_pinv(y) / self.signs.numel()

    def _bases_for(self, like: Tensor) -> list[Tensor]:
        return [basis.to(like) for basis in self._bases]


def _cosines(size: int) -> Float[Tensor, "k n"]:
    """The orthonormal cosine transform (DCT-II) as a matrix: row k is sqrt(2 / n) cos(pi k (i + 1/2) / n)."""
    n = torch.arange(size, dtype=torch.float64)
    basis = math.sqrt(2 / size) * torch.cos(math.pi / size * n[:, None] * (n + 0.5))
    basis[0] = 1 / math.sqrt(size)
    return basis
