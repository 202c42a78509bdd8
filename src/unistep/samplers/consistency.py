"""Samplers of consistency models (Song et al. 2023, "Consistency Models", algorithm 1).

One step: x0 = f(sigma_max * noise, sigma_max). Multistep: the image is noised again to each further level sigma and
mapped back,

    x_sigma = x0 + sqrt(sigma^2 - sigma_min^2) * noise,   x0 = f(x_sigma, sigma)

for x0 = f(.) already carries the noise of sigma_min.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.noise import karras_sigma
from unistep.errors import UserError
from unistep.samplers.noise_source import NoiseSource, draw
from unistep.samplers.ode_step import clipped, level


def sample_onestep(
    denoiser: Denoiser,
    x_T: Float[Tensor, "B C H W"],
    sigma_max: float = 80.0,
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    clip: bool = True,
) -> Float[Tensor, "B C H W"]:
    """Samples a consistency model by one evaluation.

    Args:
        denoiser: consistency function.
        x_T: Gaussian noise of standard deviation sigma_max.
        sigma_max: noise level at which trajectories begin.
        class_labels: class of each image; None for an unconditional model.
        clip: true to clamp the result to [-1, 1].
    """
    return clipped(denoiser, clip)(x_T, level(sigma_max, x_T), class_labels)


def sample_multistep(
    denoiser: Denoiser,
    x_T: Float[Tensor, "B C H W"],
    sigmas: Sequence[float],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    random: NoiseSource,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    clip: bool = True,
) -> Float[Tensor, "B C H W"]:
    """Samples a consistency model by one evaluation at every level of `sigmas` above sigma_min.

    A last level at or below sigma_min is allowed and costs nothing: no noise is added there, and
    f(x, sigma_min) = x.

    Args:
        denoiser: consistency function.
        x_T: *unit* Gaussian noise; multiplied by the first level here.
        sigmas: noise levels, strictly descending from sigma_max.
        class_labels: class of each image; None for an unconditional model.
        random: source of the fresh noise; one draw for every level above sigma_min but the first.
        sigma_min: noise level at which trajectories end; 0 for models trained so.
        sigma_max: noise level at which trajectories begin.
        clip: true to clamp the images to [-1, 1] after every evaluation.

    Raises:
        UserError: the levels are not strictly descending from sigma_max.
    """
    check_sigmas(sigmas, sigma_max)
    denoiser = clipped(denoiser, clip)
    x0 = denoiser(x_T * sigmas[0], level(sigmas[0], x_T), class_labels)
    for sigma in sigmas[1:]:
        if sigma <= sigma_min:
            break
        x = renoise(x0, draw(random, x0), sigma, sigma_min)
        x0 = denoiser(x, level(sigma, x), class_labels)
    return x0


def renoise(
    x0: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"], sigma: float, sigma_min: float
) -> Float[Tensor, "B C H W"]:
    """Raises images that carry the noise of sigma_min to a higher level.

    Args:
        x0: images.
        noise: unit Gaussian noise.
        sigma: noise level of the result; at or below sigma_min nothing is added.
        sigma_min: noise level of `x0`.
    """
    return x0 + noise * math.sqrt(max(sigma**2 - sigma_min**2, 0.0))


def sigmas_from_indices(
    timesteps: Sequence[int],
    num_scales: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> list[float]:
    """The noise levels at indices of the Karras grid.

    Args:
        timesteps: indices, ascending from 0, the index of sigma_max.
        num_scales: number of levels of the grid.
        sigma_min, sigma_max: lowest and highest noise level.
        rho: exponent of the grid.

    Raises:
        UserError: the indices do not start at 0, do not increase, or leave 0 .. num_scales - 1.
    """
    listed = ", ".join(str(index) for index in timesteps)
    if not timesteps or timesteps[0] != 0:
        raise UserError(f"[{listed}] must start with 0, the index of sigma_max {sigma_max:g}", field="timesteps")
    if any(a >= b for a, b in pairwise(timesteps)):
        raise UserError(f"[{listed}] must increase: they count from sigma_max down to sigma_min", field="timesteps")
    if timesteps[-1] >= max(num_scales, 1):
        raise UserError(f"[{listed}] must be below {num_scales}, the number of levels of the grid", field="timesteps")
    if num_scales == 1:
        return [sigma_max]
    indices = torch.tensor(timesteps, dtype=torch.float64)
    return karras_sigma(indices, num_scales, sigma_min, sigma_max, rho).tolist()


def check_sigmas(sigmas: Sequence[float], sigma_max: float) -> None:
    listed = ", ".join(f"{sigma:g}" for sigma in sigmas)
    # Levels may have been through fp32, in which sigma_max need not be exact.
    if not sigmas or not math.isclose(sigmas[0], sigma_max, rel_tol=1e-4):
        raise UserError(
            f"[{listed}] must start at sigma_max {sigma_max:g}, the level of the initial noise", field="sigmas"
        )
    if any(not a > b for a, b in pairwise(sigmas)) or not sigmas[-1] >= 0:
        raise UserError(f"[{listed}] must descend strictly and not fall below 0", field="sigmas")
