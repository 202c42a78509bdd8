"""Zero-shot editing: multistep sampling that restores the measured part after every step.

Song et al. 2023, "Consistency Models", algorithm 4. With f the consistency function, y = A x the measurement and
sigma_1 > ... > sigma_n the noise levels,

    x0 = f(x_T, sigma_1),    x0 <- A+ y + (I - A+ A) x0,    then for i = 2 ... n
    x  = x0 + sqrt(sigma_i^2 - sigma_min^2) noise,    x0 = f(x, sigma_i),    x0 <- A+ y + (I - A+ A) x0.

The noise at the beginning is centred on the measured part, x_T = A+ y + sigma_1 noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.editing.operators.operator import Operator, agree, residual
from unistep.errors import UserError
from unistep.samplers.consistency import renoise
from unistep.samplers.noise_source import NoiseSource, draw
from unistep.samplers.ode_step import clipped, level


@dataclass(frozen=True)
class Edited:
    """Result of `zero_shot`.

    Args:
        x: images that agree with the measurement; they may leave [-1, 1] a little, see `agree_in_range`.
        residuals: root mean square of A x0 - y of the estimate at every level, before it was made to agree.
    """

    x: Float[Tensor, "B C H W"]
    residuals: Float[Tensor, "L B"]

    @property
    def residual(self) -> Float[Tensor, " B"]:
        """The last residual, by which candidates are ranked, lower is better."""
        return self.residuals[-1]


def zero_shot(
    denoiser: Denoiser,
    operator: Operator,
    y: Float[Tensor, "B *M"],
    x_T: Float[Tensor, "B C H W"],
    sigmas: Sequence[float],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    random: NoiseSource,
    sigma_min: float = 0.002,
    clip: bool = True,
) -> Edited:
    """Makes images that agree with a measurement; one evaluation at every level of `sigmas` above sigma_min.

    Args:
        denoiser: consistency function.
        operator: operator that measures.
        y: measurement.
        x_T: noisy images at the first level.
        sigmas: noise levels, strictly descending; the first need not be sigma_max.
        class_labels: classes, passed to the denoiser.
        random: source of one draw for every level but the first.
        sigma_min: level at which the model's trajectories end.
        clip: whether every estimate is clamped to [-1, 1] before it is made to agree.

    Raises:
        UserError: there is no level, they do not descend or fall below 0, or the measurement is of images of another
            shape than x_T.
    """
    # A NaN compares with nothing.
    if not sigmas or not all(a > b for a, b in pairwise([*sigmas, -math.inf])) or not sigmas[-1] >= 0:
        listed = ", ".join(f"{sigma:g}" for sigma in sigmas)
        raise UserError(f"noise levels [{listed}] must descend strictly, not fall below 0, and there must be one")
    denoiser = clipped(denoiser, clip)
    known = operator.A_pinv(y)
    if known.shape != x_T.shape:
        measured, noisy = (" x ".join(str(n) for n in shape) for shape in (known.shape, x_T.shape))
        raise UserError(f"the measurement is of images {measured}, the noise of images {noisy}: give them one shape")
    x0 = denoiser(x_T, level(sigmas[0], x_T), class_labels)
    residuals = [residual(operator, x0, y)]
    x0 = agree(operator, x0, known)
    for sigma in sigmas[1:]:
        if sigma <= sigma_min:
            break
        x = renoise(x0, draw(random, x0), sigma, sigma_min)
        x0 = denoiser(x, level(sigma, x), class_labels)
        residuals.append(residual(operator, x0, y))
        x0 = agree(operator, x0, known)
    return Edited(x0, torch.stack(residuals))


def start(
    operator: Operator, y: Float[Tensor, "B *M"], noise: Float[Tensor, "B C H W"], sigma: float
) -> Float[Tensor, "B C H W"]:
    """Returns the images at which `zero_shot` begins: the measured part with unit `noise` of the level `sigma`."""
    return operator.A_pinv(y) + sigma * noise
