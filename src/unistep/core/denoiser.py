"""The protocol by which samplers, editors, objectives and metrics call a model, whatever its network."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@runtime_checkable
class Denoiser(Protocol):
    """A function from a noisy image and its noise level to a clean image.

    A diffusion denoiser D(x_t, sigma) returns the mean of the clean images given x_t, a consistency function
    f(x_t, sigma) the end of the trajectory through x_t; both have this type.
    """

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        /,
    ) -> Float[Tensor, "B C H W"]:
        """Returns clean images.

        Args:
            x_t: noisy images.
            sigma: noise level of each image.
            class_labels: class of each image; None for an unconditional model.

        Returns:
            Images x0, nominally in [-1, 1] but not clipped.
        """
        ...


@runtime_checkable
class FlowMap(Protocol):
    """A denoiser of trajectories that end at any level: one Euler step by it from sigma to sigma_end is exact.

    The trajectory through x_t is at sigma_end at

        (sigma_end / sigma) x_t + (1 - sigma_end / sigma) D(x_t, sigma, class_labels, sigma_end)

    so that D is a diffusion denoiser at sigma_end = sigma and a consistency function at sigma_end = 0, the default.
    """

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        sigma_end: Float[Tensor, " B"] | None = None,
        /,
    ) -> Float[Tensor, "B C H W"]:
        """Returns clean images.

        Args:
            x_t: noisy images.
            sigma: noise level of each image.
            class_labels: class of each image; None for an unconditional model.
            sigma_end: level at which each trajectory ends, at most `sigma`; None is 0.
        """
        ...


def round_sigma(denoiser: object, sigma: float) -> float:
    """Returns the noise level nearest to `sigma` at which a denoiser was trained: `sigma` itself for most.

    Denoisers of a table of levels have a method `round_sigma`, as `Preconditioned` does.

    Args:
        denoiser: denoiser, of any kind.
        sigma: noise level.
    """
    own = getattr(denoiser, "round_sigma", None)
    return sigma if own is None else own(sigma)


def device_of(denoiser: object) -> torch.device:
    """Returns the device that a denoiser computes on: its `device`, or that of its weights; a CPU where it has neither.

    Args:
        denoiser: denoiser, of any kind.
    """
    own = getattr(denoiser, "device", None)
    if isinstance(own, torch.device):
        return own
    weights = denoiser.parameters() if isinstance(denoiser, nn.Module) else iter(())
    return next((p.device for p in weights), torch.device("cpu"))
