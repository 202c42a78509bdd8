"""Settling: the last evaluations of an edit, which add no noise.

Algorithm 4 ends with an estimate from one noisy image, and with a correction towards the measurement that the model has
not seen. Evaluations at falling levels without noise improve both: the model denoises its own result, alternating with
the projection on images in range that agree with the measurement (Zhang et al. 2021, "Plug-and-play image restoration
with deep denoiser prior", with a consistency function as the denoiser):

    x  <-  an image near f(x, sigma), in [-1, 1], with A x = y.

Candidates stay as different as before where many images agree.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.noise import karras_sigmas
from unistep.editing.operators.operator import EXACT, Operator, agree_in_range
from unistep.errors import UserError
from unistep.samplers.ode_step import clipped, level

_FIRST, _LAST = 2.0, 0.1


def settle_levels(count: int, *, most: float = _FIRST, rho: float = 7.0) -> list[float]:
    """Returns noise levels to settle at, descending, from 2 or `most`, whichever is lower, to 0.1 or half of the first.

    Args:
        count: number of levels.
        most: highest possible level.
        rho: exponent of the grid.

    Raises:
        UserError: `count` is negative.
    """
    if count < 0:
        raise UserError(f"{count} must not be negative", field="settle")
    first = min(_FIRST, most)
    return karras_sigmas(count, min(_LAST, first / 2), first, rho, dtype=torch.float64).tolist() if count else []


def settle(
    denoiser: Denoiser,
    operator: Operator,
    y: Float[Tensor, "B *M"],
    x: Float[Tensor, "B C H W"],
    sigmas: Sequence[float],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    tolerance: float = EXACT,
) -> Float[Tensor, "B C H W"]:
    """Makes images in [-1, 1] that agree with a measurement and lie nearer to the model's distribution.

    Args:
        denoiser: consistency function.
        operator: operator that measures.
        y: measurement.
        x: images that agree with it.
        sigmas: noise levels, descending; one evaluation at each.
        class_labels: classes, passed to the denoiser.
        tolerance: largest distance from the measurement, see `agree_in_range`.
    """
    denoiser = clipped(denoiser, True)
    x = agree_in_range(operator, x, y, tolerance)
    for sigma in sigmas:
        x = agree_in_range(operator, denoiser(x, level(sigma, x), class_labels), y, tolerance)
    return x
