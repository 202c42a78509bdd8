"""Samplers of diffusion models: from sigma_max to 0 along the Karras grid, solving the probability-flow ODE.

All take unit Gaussian noise `x_T` (multiplied by sigma_max inside) and return images x0. `num_steps` levels
from sigma_max to sigma_min are followed by 0, so `num_steps` steps are made; with `clip` every clean image that the
denoiser names and the result are clamped to [-1, 1].

heun is algorithm 2 of Karras et al. 2022, whose churn adds noise before a step; without churn it is algorithm 1.
dpm2 is DPM-Solver-2 (Lu et al. 2022) with the same churn, ancestral the Euler step with part of the
noise drawn anew, both as in Crowson's k-diffusion. progressive is the sampler of progressive distillation (Salimans and
Ho 2022): Euler steps between `num_steps` + 1 levels, the last of which is sigma_min and not 0.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.noise import karras_sigmas
from unistep.errors import UserError
from unistep.samplers.noise_source import NoiseSource, draw
from unistep.samplers.ode_step import clipped, dpm2_step, euler_step, heun_step, level

Step = Callable[[Denoiser, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def _grid(num_steps: int, num: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    if num_steps < 1:
        raise UserError(f"a sampler makes at least one step, not {num_steps}: raise the number of steps")
    return karras_sigmas(num, sigma_min, sigma_max, rho, dtype=torch.float64).tolist()


def _levels(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """The grid with the trailing 0."""
    return [*_grid(num_steps, num_steps, sigma_min, sigma_max, rho), 0.0]


def _finish(x: Tensor, clip: bool) -> Tensor:
    return x.clamp(-1, 1) if clip else x


def _solve(
    step: Step,
    step_to_0: Step,
    denoiser: Denoiser,
    x_T: Tensor,
    sigmas: list[float],
    class_labels: Tensor | None,
    *,
    noise: NoiseSource | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    clip: bool,
) -> Tensor:
    """The steps of `sigmas`, each after the churn that Karras et al. 2022, algorithm 2, lines 4 to 6, prescribe."""
    if s_churn > 0 and noise is None:
        raise ValueError("churn adds fresh noise: give a noise source, or s_churn=0")
    denoiser = clipped(denoiser, clip)
    x = x_T * sigmas[0]
    for t, r in pairwise(sigmas):
        if noise is not None and s_churn > 0:
            # Drawn at every step, used or not: step i takes draw i whatever s_tmin and s_tmax are.
            fresh = draw(noise, x)
            if s_tmin <= t <= s_tmax:
                t_hat = t * (1 + min(s_churn / (len(sigmas) - 1), math.sqrt(2) - 1))
                x = x + fresh * (s_noise * math.sqrt(t_hat**2 - t**2))
                t = t_hat
        x = (step if r > 0 else step_to_0)(denoiser, x, level(t, x), level(r, x), class_labels)
    return _finish(x, clip)


def euler(
    denoiser: Denoiser,
    x_T: Float[Tensor, "B C H W"],
    num_steps: int,
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    clip: bool = True,
) -> Float[Tensor, "B C H W"]:
    """First order; nfe = num_steps."""
    sigmas = _levels(num_steps, sigma_min, sigma_max, rho)
    return _solve(euler_step, euler_step, denoiser, x_T, sigmas, class_labels, clip=clip)


def heun(
    denoiser: Denoiser,
    x_T: Float[Tensor, "B C H W"],
    num_steps: int,
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    noise: NoiseSource | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    clip: bool = True,
) -> Float[Tensor, "B C H W"]:
    """Second order; nfe = 2 num_steps - 1.

    Args:
        denoiser: the diffusion model.
        x_T: unit Gaussian noise.
        num_steps: number of steps, at least 1.
        class_labels: passed to the denoiser.
        noise: needed where s_churn > 0; one draw a step.
        s_churn: total churn; s_churn/num_steps, at most sqrt(2) - 1, is the relative rise of the level before a step.
        s_tmin, s_tmax: the levels between which churn happens.
        s_noise: standard deviation of the churned noise.
        sigma_min, sigma_max, rho: the grid.
        clip: clamp every clean image and the result to [-1, 1].
    """
    sigmas = _levels(num_steps, sigma_min, sigma_max, rho)
    return _solve(
        heun_step,
        euler_step,  # at level 0 Heun's second slope is 0/0
        denoiser,
        x_T,
        sigmas,
        class_labels,
        noise=noise,
        s_churn=s_churn,
        s_tmin=s_tmin,
        s_tmax=s_tmax,
        s_noise=s_noise,
        clip=clip,
    )


def dpm2(
    denoiser: Denoiser,
    x_T: Float[Tensor, "B C H W"],
    num_steps: int,
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    noise: NoiseSource | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    clip: bool = True,
) -> Float[Tensor, "B C H W"]:
    """Second order; nfe = 2 num_steps. The arguments are those of `heun`."""
    sigmas = _levels(num_steps, sigma_min, sigma_max, rho)
    return _solve(
        dpm2_step,
        dpm2_step,
        denoiser,
        x_T,
        sigmas,
        class_labels,
        noise=noise,
        s_churn=s_churn,
        s_tmin=s_tmin,
        s_tmax=s_tmax,
        s_noise=s_noise,
        clip=clip,
    )


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
    """Stochastic, first order; nfe = num_steps.

    A step from t to r goes down to r^2/t and comes back up to r with one draw of fresh noise; the last step draws none.
    """
    sigmas = _levels(num_steps, sigma_min, sigma_max, rho)
    denoiser = clipped(denoiser, clip)
    x = x_T * sigmas[0]
    for t, r in pairwise(sigmas):
        x = euler_step(denoiser, x, level(t, x), level(r**2 / t, x), class_labels)
        if r > 0:
            x = x + draw(noise, x) * (r * math.sqrt(1 - (r / t) ** 2))
    return _finish(x, clip)


def progressive(
    denoiser: Denoiser,
    x_T: Float[Tensor, "B C H W"],
    num_steps: int,
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    clip: bool = True,
) -> Float[Tensor, "B C H W"]:
    """The steps that a progressively distilled model was trained to make, down to sigma_min; nfe = num_steps."""
    sigmas = _grid(num_steps, num_steps + 1, sigma_min, sigma_max, rho)
    return _solve(euler_step, euler_step, denoiser, x_T, sigmas, class_labels, clip=clip)
