"""Curricula: the number of noise levels N(k), the decay of the target's average mu(k), the pair mapping r(t).

`step` k counts from 0; N counts levels, so that there are N - 1 pairs.

Consistency training (Song et al. 2023, "Consistency Models", appendix C):

    s(k)  = max(ceil(sqrt(k/K * ((s1 + 1)^2 - s0^2) + s0^2) - 1), 1)
    N(k)  = s(k) + 1
    mu(k) = exp(s0 * ln(mu0) / s(k))

The paper writes mu with N(k); the published code divides by the number of scales s(k) = N(k) - 1, and so does this.

Improved consistency training (Song and Dhariwal 2023, table 1 and eq. 11):

    K'   = floor(K / (log2(floor(s1/s0)) + 1))
    N(k) = min(s0 * 2^floor(k/K'), s1) + 1

Easy consistency tuning (Geng et al. 2024, "Consistency Models Made Easy", section 3.2) has no grid: stage a maps t to

    r(t) = max(t * (1 - n(t) / q^(a+1)), 0),   n(t) = 1 + k * sigmoid(-b * t)   (or n(t) = 1)
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unistep.errors import UserError


def _scales_progressive(step: int, total_steps: int, start: int, end: int) -> int:
    scales = math.ceil(math.sqrt((step / total_steps) * ((end + 1) ** 2 - start**2) + start**2) - 1)
    return max(scales, 1)


def num_scales_progressive(step: int, total_steps: int, start: int, end: int) -> int:
    """N(k) of consistency training.

    Args:
        step: training step k, from 0.
        total_steps: number of steps K.
        start: s0; there are about so many levels at step 0.
        end: s1; there are `end` + 1 levels after `total_steps`.
    """
    return _scales_progressive(step, total_steps, start, end) + 1


def ema_decay_adaptive(step: int, total_steps: int, start_scales: int, end_scales: int, start_ema: float) -> float:
    """mu(k) of consistency training, the decay of the target's average.

    Args:
        step: training step k, from 0.
        total_steps: number of steps K.
        start_scales, end_scales: s0 and s1 of N(k).
        start_ema: mu0, the decay at step 0; 0 is no average at any step.
    """
    scales = _scales_progressive(step, total_steps, start_scales, end_scales)
    # The limit of the formula at start_ema 0, where the logarithm is infinite.
    return math.exp(start_scales * math.log(start_ema) / scales) if start_ema > 0 else 0.0


def num_scales_doubling(step: int, total_steps: int, start: int, end: int) -> int:
    """N(k) of improved consistency training, doubled at equal intervals.

    Args:
        step: training step k, from 0.
        total_steps: number of steps K.
        start: s0; there are `start` + 1 levels at step 0.
        end: s1; there are at most `end` + 1 levels.
    """
    doublings = math.floor(total_steps / (math.log2(end // start) + 1))
    # min before the power of two: a step far beyond total_steps must not build a huge integer.
    exponent = min(step // max(doublings, 1), math.ceil(math.log2(end / start)))
    return min(start * 2**exponent, end) + 1


def ect_r(
    t: Float[Tensor, " B"],
    stage: float,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
    adj: Literal["sigmoid", "const"] = "sigmoid",
) -> Float[Tensor, " B"]:
    """r(t) of easy consistency tuning: 0 <= r < t. Where r is 0 the target is the clean image itself.

    Args:
        t: larger noise level of each pair.
        stage: a, at least 0, a fraction between two stages; every stage divides the relative gap (t - r)/t by q.
        q: factor of a stage, above 1.
        k, b: height and steepness of the adjustment n(t), which widens the gap at small t; unused with adj="const".
        adj: adjustment n(t): "sigmoid" as above, "const" is 1.

    Raises:
        UserError: q^(a+1) is so large that t and r are one number, and the weight 1/(t - r) infinite.
    """
    decay = q ** -(stage + 1)
    if decay < torch.finfo(t.dtype).eps:
        raise UserError(f"stage {stage:g} with q={q:g} leaves no gap between t and r: train fewer stages or lower q")
    gap = decay * (1 + k * torch.sigmoid(-b * t)) if adj == "sigmoid" else decay
    return (t * (1 - gap)).clamp_min(0)
