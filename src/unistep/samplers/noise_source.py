"""Sources of the fresh noise of stochastic samplers."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from unistep.core.random import ImageRandom

NoiseSource = ImageRandom | Callable[[Tensor], Tensor]
"""Numbers of each image, or a function from images to unit Gaussian noise of their shape."""


def draw(source: NoiseSource, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Draws unit Gaussian noise of the shape, dtype and device of `x`.

    Raises:
        ValueError: an `ImageRandom` of another number of images than `x` has.
    """
    if not isinstance(source, ImageRandom):
        return source(x).to(x)
    if len(source) != len(x):
        raise ValueError(f"{len(source)} seeds cannot draw noise for {len(x)} images")
    return source.randn(*x.shape[1:]).to(x)
