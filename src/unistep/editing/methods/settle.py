"""Settling: the last evaluations of an edit, which add no noise.

Algorithm 4 ends with noise that one evaluation took away, and with a correction, to agree with what is known, that the
model has not seen. Falling levels without noise mend both: the model is a denoiser of what it has made itself, in turns
with a nearby image in range that agrees with what is known (Zhang et al. 2021, "Plug-and-play image restoration with
deep denoiser prior", with a consistency function as the denoiser):

    x  <-  an image near f(x, sigma), in [-1, 1], with A x = y.

What the noise has decided stays: candidates differ as before where many images agree.
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
    """So many levels to settle at, descending, from 2 or `most`, whichever is lower, to 0.1 or half of the first.

    Raises:
        UserError: a negative number.
    """
    if count < 0:
        raise UserError(f"settle {count} must not be negative")
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
    close: float = EXACT,
) -> Float[Tensor, "B C H W"]:
    """Images in [-1, 1] that agree with a measurement and lie nearer to those that the model makes.

    Args:
        denoiser: the consistency function.
        operator: what is measured.
        y: the measurement.
        x: images that agree with it.
        sigmas: noise levels, descending; one evaluation at each.
        class_labels: passed to the denoiser.
        close: how nearly they agree, see `agree_in_range`.
    """
    denoiser = clipped(denoiser, True)
    x = agree_in_range(operator, x, y, close)
    for sigma in sigmas:
        x = agree_in_range(operator, denoiser(x, level(sigma, x), class_labels), y, close)
    return x
