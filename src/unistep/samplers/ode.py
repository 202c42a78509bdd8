"""Common parts of the solvers of the probability-flow ODE: noise levels, churn, and the loop over the steps.

A solver runs from sigma_max to 0 along the Karras grid: `num_steps` levels from sigma_max to sigma_min are followed by
0, so that `num_steps` steps are made. It takes unit Gaussian noise `x_T`, multiplies it by sigma_max, and returns
images x0. With `clip` every output of the denoiser and the result are clamped to [-1, 1]. Levels are rounded to those
of a denoiser that has a table of them (`unistep.core.denoiser.round_sigma`), as by NVIDIA's sampler.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser, round_sigma
from unistep.core.noise import karras_sigmas
from unistep.errors import UserError
from unistep.samplers.noise_source import NoiseSource, draw
from unistep.samplers.ode_step import clipped, level

Step = Callable[[Denoiser, Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Churn:
    """Noise added before a step, as in Karras et al. 2022, algorithm 2, lines 4 to 6.

    Args:
        noise: source of the noise; one draw a step, used or not.
        s_churn: total churn; s_churn/num_steps, at most sqrt(2) - 1, is the relative rise of the level before a step.
        s_tmin, s_tmax: noise levels between which churn happens.
        s_noise: standard deviation of the added noise.
    """

    noise: NoiseSource
    s_churn: float
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def add(self, x: Tensor, t: float, num_steps: int, denoiser: Denoiser | None = None) -> tuple[Tensor, float]:
        """Raises images at level `t` to a higher level.

        Args:
            x: images [B, C, H, W].
            t: their noise level.
            num_steps: number of steps of the whole run.
            denoiser: denoiser to whose levels the new one is rounded; None rounds nothing.

        Returns:
            The images and their new level.
        """
        if self.s_churn <= 0:
            return x, t
        # Drawn at every step, used or not: step i takes draw i whatever s_tmin and s_tmax are.
        fresh = draw(self.noise, x)
        if not self.s_tmin <= t <= self.s_tmax:
            return x, t
        t_hat = round_sigma(denoiser, t * (1 + min(self.s_churn / num_steps, math.sqrt(2) - 1)))
        return x + fresh * (self.s_noise * math.sqrt(max(t_hat**2 - t**2, 0.0))), t_hat


def noise_levels(
    num_steps: int, sigma_min: float, sigma_max: float, rho: float, *, to_zero: bool = True
) -> list[float]:
    """The `num_steps` + 1 noise levels between which the steps are made, descending from sigma_max.

    Args:
        num_steps: number of steps, at least 1.
        sigma_min, sigma_max, rho: lowest and highest noise level and exponent of the Karras grid.
        to_zero: true to append 0 after sigma_min; otherwise sigma_min is the last level.

    Raises:
        UserError: fewer than one step.
    """
    if num_steps < 1:
        raise UserError(f"a sampler makes at least one step, not {num_steps}: raise the number of steps")
    num_levels = num_steps if to_zero else num_steps + 1
    levels = karras_sigmas(num_levels, sigma_min, sigma_max, rho, dtype=torch.float64).tolist()
    return [*levels, 0.0] if to_zero else levels


def solve(
    step: Step,
    denoiser: Denoiser,
    x_T: Float[Tensor, "B C H W"],
    sigmas: list[float],
    class_labels: Int[Tensor, " B"] | None,
    *,
    last_step: Step | None = None,
    churn: Churn | None = None,
    clip: bool,
) -> Float[Tensor, "B C H W"]:
    """Makes one step between each two neighbouring levels.

    Args:
        step: step function of `unistep.samplers.ode_step`, called as step(denoiser, x, t, r, class_labels).
        denoiser: diffusion model.
        x_T: unit Gaussian noise.
        sigmas: noise levels, descending from sigma_max.
        class_labels: classes that the denoiser is called with.
        last_step: step function for the step to level 0; None is `step`.
        churn: noise added before each step; None adds none.
        clip: true to clamp the outputs of the denoiser and the result to [-1, 1].

    Returns:
        Images at the last level.
    """
    sigmas = rounded_levels(denoiser, sigmas)
    clamped = clipped(denoiser, clip)
    x = x_T * sigmas[0]
    for t, r in pairwise(sigmas):
        if churn is not None:
            x, t = churn.add(x, t, len(sigmas) - 1, denoiser)
        chosen = step if r > 0 or last_step is None else last_step
        x = chosen(clamped, x, level(t, x), level(r, x), class_labels)
    return finish(x, clip)


def rounded_levels(denoiser: Denoiser, sigmas: list[float]) -> list[float]:
    """Returns noise levels as the denoiser has them; level 0, where no network is called, stays."""
    return [round_sigma(denoiser, sigma) if sigma > 0 else sigma for sigma in sigmas]


def finish(x: Float[Tensor, "B C H W"], clip: bool) -> Float[Tensor, "B C H W"]:
    """The images, clamped to [-1, 1] if `clip` is true."""
    return x.clamp(-1, 1) if clip else x
