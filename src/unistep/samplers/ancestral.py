"""Ancestral sampling: Euler steps with part of the noise drawn anew, as in Crowson's k-diffusion."""

import math
from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.samplers.noise_source import NoiseSource, draw
from unistep.samplers.ode import finish, noise_levels, rounded_levels
from unistep.samplers.ode_step import clipped, euler_step, level


def ancestral(
    denoiser: Denoiser,
    x_T: Float[Tensor, "B C H W"],
    num_steps: int,
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    noise: NoiseSource,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    clip: bool = True,
) -> Float[Tensor, "B C H W"]:
    """Samples a diffusion model with fresh noise at every step; first order, `num_steps` evaluations.

    A step from t to r is Euler's step down to r^2/t and noise that raises the level to r; the last step draws none.

    Args:
        denoiser: diffusion model.
        x_T: unit Gaussian noise [B, C, H, W].
        num_steps: number of steps, at least 1.
        class_labels: class of each image; None for an unconditional model.
        noise: source of the fresh noise; one draw for every step but the last.
        sigma_min, sigma_max, rho: lowest and highest noise level and exponent of the Karras grid.
        clip: true to clamp the outputs of the denoiser and the result to [-1, 1].

    Returns:
        Images at noise level 0.

    Raises:
        UserError: fewer than one step.
    """
    sigmas = rounded_levels(denoiser, noise_levels(num_steps, sigma_min, sigma_max, rho))
    denoiser = clipped(denoiser, clip)
    x = x_T * sigmas[0]
    for t, r in pairwise(sigmas):
        x = euler_step(denoiser, x, level(t, x), level(r**2 / t, x), class_labels)
        if r > 0:
            x = x + draw(noise, x) * (r * math.sqrt(1 - (r / t) ** 2))
    return finish(x, clip)
