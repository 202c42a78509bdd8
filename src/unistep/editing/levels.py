"""Where an edit begins and how it goes on from there: noise levels from any level down, and strength in place of one.

The levels of an edit of n steps from sigma are the first n of the Karras grid of n + 1 levels between sigma and
sigma_min (Karras et al. 2022, eq. 5); the last, sigma_min, needs no evaluation.

Strength is what diffusers' image-to-image pipelines call it, the share of the sampler's way that an edit goes: 0
leaves an image as it is, 1 begins at sigma_max, and between them it is even in sigma^(1/rho), as the grid is.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from unistep.errors import UserError


def levels_below(
    sigma: Float[Tensor, " B"], steps: int, sigma_min: float = 0.002, rho: float = 7.0
) -> Float[Tensor, "steps B"]:
    """Noise levels for every image, descending from its `sigma` towards sigma_min; levels below sigma_min stay put.

    Raises:
        UserError: less than one step.
    """
    if steps < 1:
        raise UserError(f"an edit makes at least one step, not {steps}: raise the number of steps")
    done = torch.arange(steps, device=sigma.device, dtype=sigma.dtype)[:, None] / steps
    high, low = sigma ** (1 / rho), torch.full_like(sigma, sigma_min) ** (1 / rho)
    levels = (high + done * (low - high).clamp_max(0)) ** rho
    return torch.cat([sigma[None], levels[1:]])  # the first to the last bit


def sigma_of_strength(strength: float, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> float:
    """The noise level at which an edit of this strength begins.

    Raises:
        UserError: the strength is not in 0 .. 1.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"strength {strength} must lie between 0, which changes nothing, and 1, which keeps nothing")
    if strength in (0, 1):
        return float((sigma_min, sigma_max)[int(strength)])
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (low + strength * (high - low)) ** rho


def strength_of_sigma(sigma: float, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> float:
    """The inverse of `sigma_of_strength`.

    Raises:
        UserError: the level is not between sigma_min and sigma_max.
    """
    if not sigma_min <= sigma <= sigma_max:
        raise UserError(f"noise level {sigma:g} must lie between sigma_min {sigma_min:g} and sigma_max {sigma_max:g}")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (sigma ** (1 / rho) - low) / (high - low)
