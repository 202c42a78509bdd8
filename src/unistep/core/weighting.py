"""Loss weights as functions of the noise level: (sigma, sigma_data), [B] -> [B].

With the signal-to-noise ratio snr = 1/sigma^2 they are (Song et al. 2023, published code):

    uniform 1      snr snr      snr+1 snr + 1      karras snr + 1/sigma_data^2      truncated-snr max(snr, 1)

karras is 1/c_out^2 of the EDM scaling (Karras et al. 2022, table 1). A pair is weighted at its larger level t.
reciprocal_gap is 1/(t - r), the weight of Song and Dhariwal 2023 (eq. 8) and of easy consistency tuning. adaptive is a
function of the error itself, that of MeanFlow (Geng et al. 2025) and SoFlow.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

WeightingName = Literal["uniform", "snr", "snr+1", "karras", "truncated-snr"]


def uniform(sigma: Float[Tensor, " B"], sigma_data: float = 0.5) -> Float[Tensor, " B"]:
    """1 at every noise level."""
    return torch.ones_like(sigma)


def snr(sigma: Float[Tensor, " B"], sigma_data: float = 0.5) -> Float[Tensor, " B"]:
    """1/sigma^2."""
    return sigma**-2


def snr_plus_one(sigma: Float[Tensor, " B"], sigma_data: float = 0.5) -> Float[Tensor, " B"]:
    """1/sigma^2 + 1."""
    return sigma**-2 + 1


def karras(sigma: Float[Tensor, " B"], sigma_data: float = 0.5) -> Float[Tensor, " B"]:
    """1/sigma^2 + 1/sigma_data^2."""
    return sigma**-2 + sigma_data**-2


def truncated_snr(sigma: Float[Tensor, " B"], sigma_data: float = 0.5) -> Float[Tensor, " B"]:
    """max(1/sigma^2, 1)."""
    return (sigma**-2).clamp_min(1)


def reciprocal_gap(t: Float[Tensor, " B"], r: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """1/(t - r), for t > r."""
    return 1 / (t - r)


@torch.no_grad()
def adaptive(error: Float[Tensor, " B"], c: float, p: float) -> Float[Tensor, " B"]:
    """1/(error + c)^p, the weight that brings the errors of all images closer to one size; without gradient.

    Args:
        error: squared error of each image.
        c: constant that keeps small errors small.
        p: exponent; 0 is no weight, 1 makes nearly every weighted error 1.
    """
    return (error + c) ** -p


WEIGHTINGS: Mapping[WeightingName, Callable[[Tensor, float], Tensor]] = MappingProxyType(
    {
        "uniform": uniform,
        "snr": snr,
        "snr+1": snr_plus_one,
        "karras": karras,
        "truncated-snr": truncated_snr,
    }
)
