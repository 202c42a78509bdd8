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
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unistep.core import flow
from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom
from unistep.core.weighting import adaptive
from unistep.errors import UserError
from unistep.objectives.flow_map import FlowMapConfig, FlowMapObjective
from unistep.objectives.protocol import ObjectiveInputs, Student
from unistep.objectives.velocity import Velocity, average_velocity

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


@dataclass(frozen=True)
class SoFlowConfig(FlowMapConfig):
    """Numbers of SoFlow.

    Args:
        P_mean: mean of ln(sigma) of the times t = sigma / (1 + sigma), which is drawn from a normal distribution.
        P_std: standard deviation of it.
        end_P_mean: mean of ln(sigma) of the ends s; the lower of both is the end.
        end_P_std: standard deviation of it.
        first_gap: gap t - l at the first step, in units of t - s.
        last_gap: gap at the last step.
        gap_schedule: way from one to the other: "exponential", "linear", "cosine" or "constant" (the last).
        velocity_share: share of the images that learn the velocity itself.
        p: exponent of the adaptive weights.
        eps: constant of them, of mean squares.
        omega: scale at which the model guides itself; 1 is none.
        mix: share of the guided data's velocity in the target; the rest is the model's own with the class.
        decay_from: time from which such guidance falls to none at t = 1; 1 is nowhere.
        guidance: scale w of classifier-free guidance by the teacher, which must have a null class; 1 is none.
        label_dropout: probability that the null class stands in place of an image's own; above 0 the model can guide
            itself.
        sigma_min: smallest noise level; it must be 0, as flow maps end at the clean image.
        sigma_max: largest noise level.
        rho: exponent of the Karras grid that samplers use.

    Raises:
        UserError: a value is out of range, or two do not fit each other.
    """

    P_mean: float = -0.9
    P_std: float = 1.6
    end_P_mean: float = -4.0
    end_P_std: float = 1.6
    first_gap: float = 1.0
    last_gap: float = 1 / 3200
    gap_schedule: GapSchedule = "exponential"
    velocity_share: float = 0.0
    p: float = 0.75
    eps: float = 1e-3
    omega: float = 1.0
    mix: float = 1.0
    decay_from: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("P_std", "end_P_std", "p"):
            if not getattr(self, field) >= 0:
                raise UserError(f"{getattr(self, field)} must not be negative", field=field)
        for field in ("velocity_share", "mix", "decay_from"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"{getattr(self, field)} is outside [0, 1]", field=field)
        for field in ("first_gap", "last_gap"):
            if not 0 < getattr(self, field) <= 1:
                raise UserError(f"{getattr(self, field)} is outside (0, 1]", field=field)
        if not self.eps > 0:
            raise UserError(f"{self.eps} must be positive", field="eps")
        if (self.omega != 1 or self.mix != 1) and not self.label_dropout:
            raise UserError(f"`omega` {self.omega} and `mix` {self.mix} need `label_dropout` above 0")

    def model(self) -> dict[str, Any]:
        """A flow map that jumps to the data, with fresh noise before the next jump, as in the published sampler."""
        return super().model() | {"gamma": 1.0}

    def build(self, inputs: ObjectiveInputs) -> "SoFlowObjective":
        """Makes the objective.

        Raises:
            ValueError: a guided teacher or a null class is missing.
        """
        return SoFlowObjective(self, inputs)


class SoFlowObjective(FlowMapObjective):
    """SoFlow's losses with times, noise and dropped classes that are drawn for each image.

    Args:
        config: times, gaps, weights and guidance.
        inputs: teacher, null class and length of the run.

    Raises:
        ValueError: a guided teacher or a null class is missing.
    """

    ungraded = "target, forward"
    ungraded_calls = 1

    def __init__(self, config: SoFlowConfig, inputs: ObjectiveInputs) -> None:
        super().__init__(config, inputs)
        self.config = config
        self.ungraded_calls = 1 + 2 * (config.omega != 1 or config.mix != 1)

    def gap(self, step: int) -> float:
        """The gap t - l at `step`, in units of t - s."""
        c = self.config
        return gap_share(min(step / self.total_steps, 1.0), c.first_gap, c.last_gap, c.gap_schedule)

    def scalars(self, step: int) -> dict[str, float]:
        """The gap."""
        return {"gap": self.gap(step)}

    def loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int | None,
    ) -> Float[Tensor, " B"]:
        """Loss of each image, with a gap that depends on `step`."""
        c = self.config
        t, s = (mean + std * random.randn() for mean, std in ((c.P_mean, c.P_std), (c.end_P_mean, c.end_P_std)))
        matching, dropped = random.rand() < c.velocity_share, random.rand() < c.label_dropout
        t = self.clamped(t.sigmoid())
        s = torch.where(matching, t, torch.minimum(s.sigmoid(), t - LEAST_GAP))
        noise = random.randn(*x.shape[1:])
        return self.loss_at(student, x, class_labels, t, s, noise, dropped, self.gap(step), dropout_seed)

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        t: Float[Tensor, " B"],
        s: Float[Tensor, " B"],
        noise: Float[Tensor, "B C H W"],
        dropped: Bool[Tensor, " B"],
        gap: float,
        dropout_seed: int | None = 0,
    ) -> Float[Tensor, " B"]:
        """Loss at given times, noise of unit variance, dropped classes and gap; images with s = t learn the velocity.

        The difference of two times is divided by, so that both evaluations are in fp32 under autocast too.
        """
        c, z = self.config, flow.mixed(x, noise, t)
        u, labels = average_velocity(student, dropout_seed), self.hidden(class_labels, dropped)
        with torch.autocast(x.device.type, enabled=False):
            v = self.path_velocity(x, noise, z, t, class_labels)
            if (c.omega != 1 or c.mix != 1) and class_labels is not None:
                v = torch.where(expand(dropped, x.ndim), v, self._guided(u, z, t, v, class_labels))
            found = u(z, t, s, labels)
            below = middle_time(t, torch.minimum(s, t - LEAST_GAP), gap)

            def again(at: Tensor, time: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
                return found if at is z else u(at, time, s, labels)

            losses, _ = quotient_loss(again, z, t, s, below, v, labels, p=c.p, eps=c.eps)
            if not c.velocity_share:
                return losses
            return torch.where(s == t, velocity_loss(found, v, p=c.p, eps=c.eps), losses)

    @torch.no_grad()
    def _guided(self, u: Velocity, z: Tensor, t: Tensor, v: Tensor, class_labels: Tensor) -> Tensor:
        """The velocity guided by the model itself, mixed with the model's own."""
        c = self.config
        rise = expand(guidance_decay(t, c.decay_from) * (c.omega - 1), z.ndim)
        guided = v + rise * (v - u(z, t, t, self.null_labels(class_labels)))
        return c.mix * guided + (1 - c.mix) * u(z, t, t, class_labels)
