"""DPM-Solver++ as a multistep method of order 3 (Lu et al. 2022, arXiv 2211.01095), on levels equal in ln(sigma).

It predicts the clean image, lambda = -ln(sigma), and with equal steps h

    e = e^-h - 1,   phi2 = e/h + 1,   phi3 = phi2/h - 1/2,   D_i the denoiser's output at x_i
    x_{i+1} = (sigma_{i+1}/sigma_i) x_i - e D_i                      order 1
              ... - e/2 d                                            order 2, d = D_i - D_{i-1}
              ... + phi2 (d + dd/2) - phi3 dd/2                      order 3, dd = d - (D_{i-1} - D_{i-2})

The first steps have no earlier outputs, and no order is higher than the number of steps that are left.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.samplers.ode_step import level


def log_levels(num_steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """The `num_steps` + 1 noise levels from sigma_max to sigma_min, equally spaced in ln(sigma)."""
    first, last = math.log(sigma_max), math.log(sigma_min)
    return [math.exp(first + i / num_steps * (last - first)) for i in range(num_steps + 1)]


@torch.no_grad()
def trajectory(
    denoiser: Denoiser,
    x: Float[Tensor, "B C H W"],
    sigmas: Sequence[float],
    class_labels: Int[Tensor, " B"] | None = None,
) -> list[Float[Tensor, "B C H W"]]:
    """The images at every level, one evaluation a step; the last is the result.

    Args:
        denoiser: diffusion model.
        x: images at the first level.
        sigmas: noise levels, descending, equally spaced in ln(sigma).
        class_labels: class of each image; None for an unconditional model.
    """
    steps = len(sigmas) - 1
    h = math.log(sigmas[0] / sigmas[1])
    e = math.expm1(-h)
    phi2 = e / h + 1
    phi3 = phi2 / h - 0.5
    points, outputs = [x], []
    for i in range(steps):
        D = denoiser(x, level(sigmas[i], x), class_labels).to(x.dtype)
        outputs = [D, *outputs[:2]]
        order = min(len(outputs), steps - i)
        x = sigmas[i + 1] / sigmas[i] * x - e * D
        if order == 2:
            x = x - 0.5 * e * (D - outputs[1])
        elif order == 3:
            d = D - outputs[1]
            dd = d - (outputs[1] - outputs[2])
            x = x + phi2 * (d + dd / 2) - phi3 * (dd / 2)
        points.append(x)
    return points
