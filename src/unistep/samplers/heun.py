"""Heun's method for the probability-flow ODE (Karras et al. 2022, algorithm 1; with churn algorithm 2)."""

from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.samplers.ode import Churn, noise_levels, solve
from unistep.samplers.ode_step import euler_step, heun_step


def heun(
    denoiser: Denoiser,
    x_T: Float[Tensor, "B C H W"],
    num_steps: int,
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    churn: Churn | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    clip: bool = True,
) -> Float[Tensor, "B C H W"]:
    """Samples a diffusion model by Heun's method; second order, 2 `num_steps` - 1 evaluations.

    Args:
        denoiser: diffusion model.
        x_T: unit Gaussian noise [B, C, H, W].
        num_steps: number of steps, at least 1.
        class_labels: class of each image; None for an unconditional model.
        churn: noise added before each step; None adds none, and the solver is deterministic.
        sigma_min, sigma_max, rho: lowest and highest noise level and exponent of the Karras grid.
        clip: true to clamp the outputs of the denoiser and the result to [-1, 1].

    Returns:
        Images at noise level 0.

    Raises:
        UserError: fewer than one step.
    """
    sigmas = noise_levels(num_steps, sigma_min, sigma_max, rho)
    # At level 0 Heun's second slope is 0/0.
    return solve(heun_step, denoiser, x_T, sigmas, class_labels, last_step=euler_step, churn=churn, clip=clip)
