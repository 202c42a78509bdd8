"""The one protocol that samplers, editors, objectives and metrics see instead of a network class."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Denoiser(Protocol):
    """A noisy image and its noise level in, a clean image out.

    A diffusion denoiser D(x_t, sigma), which gives the mean of the clean images that x_t may have come from, and a
    consistency function f(x_t, sigma), which gives the end of the trajectory through x_t, have this same type.
    """

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        /,
    ) -> Float[Tensor, "B C H W"]:
        """Returns the clean images x0, nominally in [-1, 1] but not clipped, for the noise levels `sigma`."""
        ...
