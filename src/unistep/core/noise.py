"""Noise levels: the Karras grid and the distributions p(sigma) that training draws from.

`sigma` is the standard deviation of the noise in x_t = x + sigma * noise, in units of the images ([-1, 1]).

The grid of N levels (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models",
eq. 5), counted from sigma_max:

    sigma_i = (sigma_max^(1/rho) + i/(N-1) * (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,   i = 0 .. N-1

The log-normal distribution ln(sigma) ~ N(P_mean, P_std^2) is the same paper's, table 1; its discretised form over the
pairs of neighbouring levels is eq. 10 of Song and Dhariwal 2023, "Improved Techniques for Training Consistency Models".
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64, Shaped
from torch import Tensor


def _last(num: int | Tensor, dtype: torch.dtype) -> int | Tensor:
    return num.to(dtype) - 1 if isinstance(num, Tensor) else num - 1


def karras_sigmas(
    num: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " N"]:
    """The Karras grid, descending: index 0 is sigma_max, index num-1 is sigma_min; no trailing zero.

    Args:
        num: number of levels; a grid of one level is [sigma_max].
        sigma_min, sigma_max: lowest and highest noise level.
        rho: exponent of the grid.
        device: device of the result.
        dtype: dtype of the computation and the result.

    Raises:
        ValueError: fewer than one level.
    """
    if num < 1:
        raise ValueError(f"a grid needs at least one noise level, not {num}")
    index = torch.arange(num, device=device, dtype=dtype)
    return karras_sigma(index, max(num, 2), sigma_min, sigma_max, rho)


def karras_sigma(
    index: Shaped[Tensor, "*#S"],
    num: int | Shaped[Tensor, "*#S"],
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Float[Tensor, "..."]:
    """Noise levels at indices of the Karras grid.

    The levels at indices 0 and num-1 are sigma_max and sigma_min to the last bit: f(x, sigma_min) = x is exact only
    there.

    Args:
        index: indices, from 0 at sigma_max; fractions lie between two levels.
        num: number of levels of the grid, at least 2.
        sigma_min, sigma_max: lowest and highest noise level.
        rho: exponent of the grid.

    Returns:
        Noise levels in the dtype of `index` if that is a floating type, else in fp32.
    """
    index = index if index.is_floating_point() else index.to(torch.float32)
    last = _last(num, index.dtype)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigma = (high + index / last * (low - high)) ** rho
    sigma = torch.where(index == last, torch.full_like(sigma, sigma_min), sigma)
    return torch.where(index == 0, torch.full_like(sigma, sigma_max), sigma)


def karras_index(
    sigma: Float[Tensor, "*#S"],
    num: int | Shaped[Tensor, "*#S"],
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Float[Tensor, "..."]:
    """The inverse of `karras_sigma`.

    Args:
        sigma: noise levels.
        num: number of levels of the grid, at least 2.
        sigma_min, sigma_max: lowest and highest noise level.
        rho: exponent of the grid.

    Returns:
        The index of each level, a fraction between two levels; 0 at sigma_max, num-1 at sigma_min.
    """
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (sigma ** (1 / rho) - high) / (low - high) * _last(num, sigma.dtype)


@dataclass(frozen=True)
class LogNormal:
    """The distribution ln(sigma) ~ N(P_mean, P_std^2).

    Args:
        P_mean: mean of ln(sigma); -1.2 in EDM, -1.1 in iCT and ECT.
        P_std: standard deviation of ln(sigma); 1.2 in EDM, 2.0 in iCT and ECT.
    """

    P_mean: float = -1.2
    P_std: float = 1.2

    def sample(self, normal: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Turns unit Gaussian numbers into noise levels."""
        return (self.P_mean + self.P_std * normal).exp()


def discretized_lognormal(
    num: int,
    P_mean: float = -1.1,
    P_std: float = 2.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    *,
    device: torch.device | str | None = None,
) -> Float[Tensor, " N"]:
    """The log-normal distribution over pairs of neighbouring levels of the grid.

    Entry i (of num - 1) belongs to the pair t = sigma_i, r = sigma_{i+1}:
    p_i is proportional to erf((ln t - P_mean) / (sqrt(2) P_std)) - erf((ln r - P_mean) / (sqrt(2) P_std)).

    Args:
        num: number of levels of the grid, at least 2.
        P_mean, P_std: mean and standard deviation of ln(sigma).
        sigma_min, sigma_max: lowest and highest noise level.
        rho: exponent of the grid.
        device: device of the result.

    Returns:
        The probability of each pair; float64, sums to 1.

    Raises:
        ValueError: fewer than two levels.
    """
    if num < 2:
        raise ValueError(f"a pair needs at least two noise levels, not {num}")
    sigmas = karras_sigmas(num, sigma_min, sigma_max, rho, dtype=torch.float64)
    cumulative = torch.erf((sigmas.log() - P_mean) / (math.sqrt(2) * P_std))
    mass = cumulative[:-1] - cumulative[1:]
    return (mass / mass.sum()).to(device)


def sample_index(probabilities: Float[Tensor, " N"], uniform: Float[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """Draws indices by inverting the cumulative sum of their probabilities.

    Args:
        probabilities: probability of each index.
        uniform: a uniform number in [0, 1) for each draw.
    """
    cumulative = probabilities.to(torch.float64).cumsum(0)
    return torch.searchsorted(cumulative, uniform.to(torch.float64) * cumulative[-1], right=True)


def pair_sigmas(
    index: Int[Tensor, " B"],
    num: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Pairs of neighbouring levels of the grid.

    Args:
        index: index of the larger level of each pair, in 0 .. num-2.
        num: number of levels of the grid, at least 2.
        sigma_min, sigma_max: lowest and highest noise level.
        rho: exponent of the grid.

    Returns:
        The levels t at `index` and r at `index` + 1; t > r.
    """
    t = karras_sigma(index, num, sigma_min, sigma_max, rho)
    r = karras_sigma(index + 1, num, sigma_min, sigma_max, rho)
    return t, r
