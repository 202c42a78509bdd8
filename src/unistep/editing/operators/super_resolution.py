"""Super-resolution: the measurement is the mean of every patch.

The rows of A are 1/n on a patch of n pixels, so A A^T = I/n and A+ = n A^T repeats every mean over its patch (Song et
al. 2023, "Consistency Models", algorithm 4, where an orthogonal basis of each patch begins with the constant vector).
"""

from jaxtyping import Float
from torch import Tensor

from unistep.errors import UserError


class SuperResolution:
    """Measures the means of patches, channel by channel.

    Args:
        factor: side of a patch in pixels, or (height, width).

    Raises:
        UserError: the factor is below 1.
    """

    tight = True
    stationary = True

    def __init__(self, factor: int | tuple[int, int]) -> None:
        self.factor = (factor, factor) if isinstance(factor, int) else factor
        if min(self.factor) < 1:
            raise UserError(f"a factor of {self._text()} makes nothing larger: give whole numbers of 1 or more")
        self.name = f"super-resolution x{self._text()}"

    def A(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """Returns the means, an image of H / factor x W / factor pixels.

        Raises:
            UserError: the image size is no multiple of the factor.
        """
        (batch, channels, height, width), (fh, fw) = x.shape, self.factor
        if height % fh or width % fw:
            raise UserError(f"{self.name} cannot part images of {height}x{width} pixels into equal patches: crop them")
        return x.reshape(batch, channels, height // fh, fh, width // fw, fw).mean(dim=(3, 5))

    def A_pinv(self, y: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        """Repeats every mean over its patch."""
        return y.repeat_interleave(self.factor[0], dim=2).repeat_interleave(self.factor[1], dim=3)

    def A_T(self, y: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        """Applies the transpose of A."""
        return self.A_pinv(y) / (self.factor[0] * self.factor[1])

    def _text(self) -> str:
        height, width = self.factor
        return f"{height}" if height == width else f"{height}x{width}"
