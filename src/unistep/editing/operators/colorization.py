"""Colorization: the measurement is the luma, Y = 0.2989 R + 0.5870 G + 0.1140 B (ITU-R BT.601).

With u the unit vector along these weights, u u^T is the orthogonal projection of a pixel on its measured part.
u is the first vector of the orthogonal basis of Song et al. 2023, "Consistency Models", algorithm 4; the others cancel,
and so does the sign that a QR decomposition happens to give u.

The weights are divided by their sum, 0.9999, so that a grey pixel is its own luma and a grey picture a measurement.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from unistep.errors import UserError

_LUMA = (0.2989, 0.5870, 0.1140)


class Colorization:
    """Measures the luma of RGB images, in [-1, 1] as they are."""

    name = "colorization"
    tight = True
    stationary = True

    def A(self, x: Float[Tensor, "B 3 H W"] | Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
        """Returns the luma.

        Raises:
            UserError: the images do not have three channels.
        """
        if x.shape[1] != 3:
            raise UserError(f"colorization needs images of 3 channels, not {x.shape[1]}: take a model of RGB images")
        return (x * _weights(x)).sum(dim=1, keepdim=True)

    def A_pinv(self, y: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Returns the images of that luma whose colours lie along the weights; they may leave [-1, 1]."""
        weights = _weights(y)
        return y * weights / weights.square().sum()

    def A_T(self, y: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Applies the transpose of A."""
        return y * _weights(y)


def _weights(like: Tensor) -> Float[Tensor, "3 1 1"]:
    luma = torch.tensor(_LUMA, dtype=torch.float64)
    return (luma / luma.sum()).to(like)[:, None, None]
