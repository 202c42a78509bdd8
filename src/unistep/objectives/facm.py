"""FACM, flow-anchored consistency (arXiv 2507.03738): flow matching beside the continuous-time consistency loss.

The paper's time runs from noise to data; here it is that of `unistep.core.flow`, t_paper = 1 - t and F_paper = -u. With
u(z, t, 0) for the average velocity to the data and u(z, t, t) for the velocity itself, the consistency loss is

    g = sg u - (v - t du/dt), its values clamped to [-1, 1],   target = sg u - (1 - (1 - t)^p) g
    L_cm = E cos(pi (1 - t) / 2) e / sqrt(sg e + 0.001),   e = mean (u - target)^2

and the anchor, which keeps the derivative meaningful,

    L_fm = E mean (u(z, t, t) - v)^2 + (1 - cosine similarity over the channels, mean over the positions)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from unistep.core import flow
from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom
from unistep.errors import UserError
from unistep.objectives.derivative import differentiable, jvp
from unistep.objectives.flow_map import FlowMapConfig, FlowMapObjective
from unistep.objectives.protocol import ObjectiveInputs, Student
from unistep.objectives.velocity import average_velocity, unwrapped

OfTime = Callable[[Tensor, Tensor], Tensor]
"""u(z, t), with the end and the class filled in."""


def anchor_loss(found: Float[Tensor, "B C H W"], v: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """The flow-matching loss of each image: squared error and, of more channels than one, angle.

    The angle of one channel is a sign: without gradient, but for values near 0, where it is about 1e8.

    Args:
        found: velocity of the model.
        v: velocity of the trajectories, without gradient.
    """
    error = (found - v).square().flatten(1).mean(1)
    if v.shape[1] == 1:
        return error
    return error + (1 - functional.cosine_similarity(found, v, dim=1)).flatten(1).mean(1)


def anchored_loss(
    u: OfTime,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    v: Float[Tensor, "B C H W"],
    *,
    p: float,
    ungraded: OfTime | None = None,
) -> Float[Tensor, " B"]:
    """The consistency loss of each image.

    Args:
        u: average velocity to the data.
        z: images at the times t.
        t: times.
        v: velocity of the trajectories, without gradient.
        p: exponent of the step to the target, 1 - (1 - t)^p of the whole.
        ungraded: the same function, for the derivative; None is `u`.
    """
    value = u(z, t)
    with torch.no_grad():
        with differentiable(z.device.type):
            _, du_dt = jvp(ungraded or u, (z, t), (v, torch.ones_like(t)))
        gap = value - (v - expand(t, z.ndim) * du_dt.to(z.dtype))
        target = value - expand(1 - (1 - t) ** p, z.ndim) * gap.clamp(-1, 1)
    error = (value - target).square().flatten(1).mean(1)
    return (math.pi / 2 * (1 - t)).cos() * error / (error.detach() + 1e-3).sqrt()


@dataclass(frozen=True)
class FACMConfig(FlowMapConfig):
    """Numbers of FACM.

    Args:
        velocity: trajectories: those of the teacher ("teacher") or of the pairs of image and noise ("data").
        P_mean: mean of ln(tau) of the times, which is drawn from a normal distribution.
        P_std: standard deviation of it.
        law: time of tau: "arctan" is 2/pi arctan(tau), "logistic" tau / (1 + tau).
        p: exponent of the step to the target, 1 - (1 - t)^p of the whole.
        guidance: scale w of classifier-free guidance by the teacher, which must have a null class; 1 is none.
        label_dropout: probability that the null class stands in place of an image's own.
        sigma_min: smallest noise level; it must be 0, as flow maps end at the clean image.
        sigma_max: largest noise level.
        rho: exponent of the Karras grid that samplers use.

    Raises:
        UserError: a value is out of range.
    """

    velocity: Literal["teacher", "data"] = "teacher"
    P_mean: float = -0.8
    P_std: float = 1.6
    law: Literal["arctan", "logistic"] = "arctan"
    p: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("P_std", "p"):
            if not getattr(self, field) > 0:
                raise UserError(f"{getattr(self, field)} must be positive", field=field)

    def model(self) -> dict[str, Any]:
        """A flow map that jumps to the data alone: no end between is trained."""
        return super().model() | {"gamma": 1.0}

    @property
    def needs_teacher(self) -> bool:
        """Whether the trajectories are the teacher's, or guided by it."""
        return self.velocity == "teacher" or self.guidance != 1

    def build(self, inputs: ObjectiveInputs) -> "FACMObjective":
        """Makes the objective.

        Raises:
            ValueError: a teacher or a null class is missing.
        """
        return FACMObjective(self, inputs)


class FACMObjective(FlowMapObjective):
    """Consistency loss and anchor with times, noise and dropped classes that are drawn for each image.

    Args:
        config: times and trajectories.
        inputs: teacher and null class.

    Raises:
        ValueError: a teacher or a null class is missing.
    """

    graded_calls = 2

    def __init__(self, config: FACMConfig, inputs: ObjectiveInputs) -> None:
        super().__init__(config, inputs, from_teacher=config.velocity == "teacher")
        self.config = config

    def loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int | None,
    ) -> Float[Tensor, " B"]:
        """Loss of each image; the same at every step."""
        c = self.config
        tau = (c.P_mean + c.P_std * random.randn()).exp()
        t = self.clamped(2 / math.pi * tau.atan() if c.law == "arctan" else flow.time_of(tau))
        labels = self.hidden(class_labels, random.rand() < c.label_dropout)
        return self.loss_at(student, x, labels, t, random.randn(*x.shape[1:]), dropout_seed)

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        t: Float[Tensor, " B"],
        noise: Float[Tensor, "B C H W"],
        dropout_seed: int | None = 0,
    ) -> Float[Tensor, " B"]:
        """Loss at given times and noise of unit variance."""
        z = flow.mixed(x, noise, t)
        v = self.path_velocity(x, noise, z, t, class_labels)

        def to_data(model: Any) -> OfTime:
            u = average_velocity(model, dropout_seed)
            return lambda z, t: u(z, t, torch.zeros_like(t), class_labels)

        consistency = anchored_loss(to_data(student), z, t, v, p=self.config.p, ungraded=to_data(unwrapped(student)))
        return consistency + anchor_loss(average_velocity(student, dropout_seed)(z, t, t, class_labels), v)
