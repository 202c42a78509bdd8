"""SoFlow: MeanFlow's goal without a derivative (arXiv 2512.15657).

A network N(z, t, s) with the end s of the trajectory as an input gives the solution of the ODE as

    f(z, t, s) = A(t, s) z + B(t, s) N(z, t, s),   Euler's coefficients A = 1, B = s - t

f should not change along a trajectory. With l just below t and z_l = z_t + (l - t) v, the quotient

    q = (f(z_t, t, s) - sg f(z_l, l, s)) / (t - l),   w = 1/(mean q^2 + eps)^p without gradient

is what remains, and the loss is  E 1/2 w mean (f_t - sg f_l)^2 / (|B| (t - l)),  whose gradient is that of
sign(B) mean (N sg(w q)), which divides by nothing that is small. The gap t - l shrinks during training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.parameterization import expand
from unistep.core.weighting import adaptive
from unistep.objectives.velocity import Velocity

GapSchedule = Literal["exponential", "linear", "cosine", "constant"]

# Levels closer than this are one: the quotient divides by the gap.
LEAST_GAP = 1e-4


@dataclass(frozen=True)
class Coefficients:
    """The solution in terms of a network: f = A z + B N; both are functions of (t, s)."""

    A: Callable[[Tensor, Tensor], Tensor]
    B: Callable[[Tensor, Tensor], Tensor]


EULER = Coefficients(lambda t, s: torch.ones_like(t), lambda t, s: s - t)
"""N is the average velocity over [s, t]."""


def gap_share(progress: float, first: float, last: float, schedule: GapSchedule = "exponential") -> float:
    """The gap t - l in units of t - s.

    Args:
        progress: steps done over those of the run, in [0, 1].
        first, last: share at the beginning and at the end.
        schedule: way from one to the other; "constant" is `last` throughout.
    """
    match schedule:
        case "exponential":
            return first * (last / first) ** progress
        case "linear":
            return first + (last - first) * progress
        case "cosine":
            return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
        case "constant":
            return last


def middle_time(t: Float[Tensor, " B"], s: Float[Tensor, " B"], share: float) -> Float[Tensor, " B"]:
    """l, the share of the way from t to s, at least `LEAST_GAP` below t."""
    return torch.minimum(t + (s - t) * share, t - LEAST_GAP)


def guidance_decay(t: Float[Tensor, " B"], start: float) -> Float[Tensor, " B"]:
    """Factor of the guidance at times t: 1 up to `start`, from there falling to 0 at t = 1."""
    if start >= 1:
        return torch.ones_like(t)
    w = ((1 - t) / (1 - start)).clamp(0, 1 - 1e-6)
    return torch.where(t <= start, torch.ones_like(t), 1 - (-0.025 * w / (1 - w)).exp())


def quotient_loss(
    network: Velocity,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    s: Float[Tensor, " B"],
    l: Float[Tensor, " B"],  # noqa: E741 - the paper's name
    v: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    p: float,
    eps: float,
    coefficients: Coefficients = EULER,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """The loss of each image, and the surrogate whose gradient it has and whose value means nothing.

    Args:
        network: N(z, t, s, class_labels); called twice, the second time without gradient.
        z: images at the times t.
        t: times.
        s: ends of the trajectories, below t.
        l: times between s and t.
        v: velocity of the trajectories, without gradient.
        class_labels: classes of the images; None for a network without classes.
        p, eps: exponent and constant of the adaptive weight.
        coefficients: the solution in terms of the network.
    """
    N = network(z, t, s, class_labels)
    gap, scale = t - l, coefficients.B(t, s)
    with torch.no_grad():
        z_l = z - expand(gap, z.ndim) * v
        N_l = network(z_l, l, s, class_labels)
        f_t, f_l = (
            expand(coefficients.A(time, s), z.ndim) * at + expand(coefficients.B(time, s), z.ndim) * out
            for at, time, out in ((z, t, N), (z_l, l, N_l))
        )
        q = (f_t - f_l) / expand(gap, z.ndim)
        squared = q.square().flatten(1).mean(1)
        weight = adaptive(squared, eps, p)
        value = 0.5 * weight * squared * gap / scale.abs()
    surrogate = scale.sign() * (N * (expand(weight, z.ndim) * q)).flatten(1).mean(1)
    return value + (surrogate - surrogate.detach()), surrogate


def velocity_loss(
    found: Float[Tensor, "B C H W"], target: Float[Tensor, "B C H W"], *, p: float, eps: float, slope: float = 1.0
) -> Float[Tensor, " B"]:
    """Flow matching with the adaptive weight, of each image.

    Args:
        found: velocity of the model.
        target: velocity of the trajectories, without gradient.
        p, eps: exponent and constant of the weight.
        slope: |dB/ds| at s = t, 1 for Euler's coefficients.
    """
    error = (found - target).square().flatten(1).mean(1)
    return adaptive(error, eps, p) / slope * error
