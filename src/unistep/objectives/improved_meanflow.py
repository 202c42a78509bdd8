"""Improved MeanFlow (iMF, arXiv 2512.02012): MeanFlow as a loss of the velocity, with guidance as an input.

    V = u + (t - r) sg(du/dt),   L = E w || V - v_g ||^2 + w' || v_head - v_g ||^2,   w = 1/(|| ||^2 + c)^p

The derivative is along the model's own velocity v_c with the class in place of n - x, and the target is guided by the
model itself. The scale omega of the guidance is an input of the network, drawn for each image:

    v_g = n - x + (1 - 1/omega) (v_c - v_null)

so that it can be chosen when sampling. It is 1 outside an interval of times, which is an input too.
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
from unistep.objectives.flow_map import FlowMapObjective
from unistep.objectives.meanflow import AverageVelocityConfig
from unistep.objectives.protocol import ObjectiveInputs, Student
from unistep.objectives.velocity import average_velocity, total_derivative, unwrapped


@dataclass(frozen=True)
class GuidanceInput:
    """Guidance of each image, as the network takes it.

    Args:
        scale: scale omega, at least 1; 1 is none.
        start, end: times between which it holds.
    """

    scale: Float[Tensor, " B"]
    start: Float[Tensor, " B"]
    end: Float[Tensor, " B"]

    def at(self, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The scale that holds at times t."""
        return torch.where((t >= self.start) & (t <= self.end), self.scale, torch.ones_like(self.scale))

    @classmethod
    def always(cls, scale: Float[Tensor, " B"]) -> "GuidanceInput":
        """Guidance at all times."""
        return cls(scale, torch.zeros_like(scale), torch.ones_like(scale))


Head = Callable[[Tensor, Tensor, Tensor, GuidanceInput, Tensor | None], Tensor]
"""u(z, t, r, guidance, class_labels)."""


def draw_scale(uniform: Float[Tensor, " B"], most: float, beta: float) -> Float[Tensor, " B"]:
    """Scales of density proportional to omega^-beta on [1, most].

    Args:
        uniform: uniform numbers in [0, 1).
        most: largest scale.
        beta: exponent; the larger, the more scales are small.
    """
    if beta == 1:
        return most**uniform
    return (1 + uniform * (most ** (1 - beta) - 1)) ** (1 / (1 - beta))


@dataclass(frozen=True)
class ImprovedTarget:
    """Direction and target of the velocity loss, and the classes of its images.

    Args:
        tangent: v_c, along which u is differentiated.
        velocity: v_g, the target.
        class_labels: classes with those that are dropped.
    """

    tangent: Float[Tensor, "B C H W"]
    velocity: Float[Tensor, "B C H W"]
    class_labels: Int[Tensor, " B"] | None


@torch.no_grad()
def improved_target(
    v_head: Head,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    v: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"],
    null_labels: Int[Tensor, " B"],
    guidance: GuidanceInput,
    dropped: Bool[Tensor, " B"],
) -> ImprovedTarget:
    """The direction of the derivative, the guided velocity and the classes that the network is given.

    Args:
        v_head: the model's instantaneous velocity.
        z: images at the times t.
        t: times.
        v: velocity n - x of the pairs of image and noise.
        class_labels: classes of the images.
        null_labels: class that stands for none, for each image.
        guidance: guidance drawn for each image.
        dropped: true for images that learn the null class; their target is v.
    """
    scale = guidance.at(t)
    none = GuidanceInput.always(torch.ones_like(scale))
    v_null = v_head(z, t, t, none, null_labels)
    v_class = v_head(z, t, t, GuidanceInput.always(scale), class_labels)
    v_guided = v + expand(1 - 1 / scale, z.ndim) * (v_class - v_null)
    v_guided = torch.where(expand(dropped, z.ndim), v, v_guided)
    return ImprovedTarget(v_class, v_guided, torch.where(dropped, null_labels, class_labels))


def improved_meanflow_loss(
    u_head: Head,
    v_head: Head,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    guidance: GuidanceInput,
    target: ImprovedTarget,
    *,
    p: float,
    c: float,
    ungraded: Head | None = None,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """The losses of both heads for each image.

    Args:
        u_head: average velocity.
        v_head: instantaneous velocity.
        z: images at the times t.
        t: times.
        r: ends, at most t.
        guidance: guidance drawn for each image.
        target: result of `improved_target`.
        p, c: exponent and constant of the adaptive weights.
        ungraded: the function `u_head`, for the derivative; None is `u_head`.
    """
    labels = target.class_labels
    derived = ungraded or u_head
    _, du_dt = total_derivative(
        lambda z, t, r, labels: derived(z, t, r, guidance, labels), z, t, r, target.tangent, labels
    )
    V = u_head(z, t, r, guidance, labels) + expand(t - r, z.ndim) * du_dt
    losses = []
    for found in (V, v_head(z, t, r, guidance, labels)):
        error = (found - target.velocity).square().flatten(1).sum(1)
        losses.append(adaptive(error, c, p) * error)
    return losses[0], losses[1]


@dataclass(frozen=True)
class ImprovedMeanFlowConfig(AverageVelocityConfig):
    """Numbers of improved MeanFlow.

    The instantaneous velocity is the average one over an interval of no length, where the paper has a second head.
    With `label_dropout` above 0 the network learns the null class and takes the scale of guidance as an input.

    Args:
        P_mean: mean of ln(sigma) of the times t = sigma / (1 + sigma), which is drawn from a normal distribution.
        P_std: standard deviation of it.
        end_P_mean: mean of ln(sigma) of the ends r.
        end_P_std: standard deviation of it.
        times: way of the pairs: "below" takes the lower of t and r as the end, "sorted" the larger of both as the time.
        different: share of the images whose end differs from the time; the others learn the velocity itself.
        p: exponent of the adaptive weights.
        c: constant of them, of the squared norm of the whole image.
        largest_scale: largest scale of guidance, of which 1 is none.
        beta: exponent of the density of the scales, omega^-beta.
        sampled_scale: scale that the model is sampled with where nothing else is asked for.
        guidance: scale w of classifier-free guidance by the teacher, which must have a null class; 1 is none.
        label_dropout: probability that the null class stands in place of an image's own; above 0 the model guides
            itself.
        sigma_min: smallest noise level; it must be 0, as flow maps end at the clean image.
        sigma_max: largest noise level.
        rho: exponent of the Karras grid that samplers use.

    Raises:
        UserError: a value is out of range, or two do not fit each other.
    """

    P_mean: float = -0.4
    P_std: float = 1.0
    end_P_mean: float = -0.4
    end_P_std: float = 1.0
    times: Literal["below", "sorted"] = "sorted"
    different: float = 0.5
    p: float = 1.0
    c: float = 0.01
    largest_scale: float = 8.0
    beta: float = 1.0
    sampled_scale: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.sampled_scale <= self.largest_scale < math.inf:
            raise UserError(
                f"`sampled_scale` {self.sampled_scale} must lie between 1 and `largest_scale` {self.largest_scale}"
            )

    def build(self, inputs: ObjectiveInputs) -> "ImprovedMeanFlowObjective":
        """Makes the objective.

        Raises:
            ValueError: a guided teacher or a null class is missing.
        """
        return ImprovedMeanFlowObjective(self, inputs)

    def model(self) -> dict[str, Any]:
        """A flow map, with the scale that it is sampled with where guidance is an input."""
        return super().model() | ({"guidance_scale": self.sampled_scale} if self.null_class else {})

    def network(self) -> dict[str, Any]:
        """A network with an input for the end of the trajectory and, where the model guides itself, for the scale."""
        return super().network() | {"guidance_embedding": self.null_class}


class ImprovedMeanFlowObjective(FlowMapObjective):
    """The losses of improved MeanFlow with times, noise, scales and dropped classes that are drawn for each image.

    Args:
        config: times, weights and guidance.
        inputs: teacher and null class.

    Raises:
        ValueError: a guided teacher or a null class is missing.
    """

    graded_calls = 2
    ungraded_calls = 4

    def __init__(self, config: ImprovedMeanFlowConfig, inputs: ObjectiveInputs) -> None:
        super().__init__(config, inputs)
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
        c, uniform = self.config, random.rand()
        t, r = c.draw_times(random.randn(), random.randn(), uniform)
        scale, noise, t = (
            draw_scale(random.rand(), c.largest_scale, c.beta),
            random.randn(*x.shape[1:]),
            self.clamped(t),
        )
        dropped = uniform < c.label_dropout
        return self.loss_at(student, x, class_labels, t, torch.minimum(r, t), noise, scale, dropped, dropout_seed)

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        t: Float[Tensor, " B"],
        r: Float[Tensor, " B"],
        noise: Float[Tensor, "B C H W"],
        scale: Float[Tensor, " B"],
        dropped: Bool[Tensor, " B"],
        dropout_seed: int | None = 0,
    ) -> Float[Tensor, " B"]:
        """Loss at given times, noise of unit variance, scales of guidance and dropped classes."""
        c, z = self.config, flow.mixed(x, noise, t)
        guided = c.null_class
        guidance = GuidanceInput.always(scale if guided else torch.ones_like(scale))

        def u_of(model: Any) -> Head:
            return lambda z, t, r, guidance, y: average_velocity(
                model, dropout_seed, guidance.scale if guided else None
            )(z, t, r, y)

        def v_of(model: Any) -> Head:
            return lambda z, t, r, guidance, y: u_of(model)(z, t, t, guidance, y)

        plain = unwrapped(student)
        v = self.path_velocity(x, noise, z, t, class_labels)
        if guided and class_labels is not None:
            null = self.null_labels(class_labels)
            target = improved_target(v_of(plain), z, t, v, class_labels, null, guidance, dropped)
        else:
            with torch.no_grad():
                target = ImprovedTarget(v_of(plain)(z, t, t, guidance, class_labels), v, class_labels)
        losses = improved_meanflow_loss(
            u_of(student), v_of(student), z, t, r, guidance, target, p=c.p, c=c.c, ungraded=u_of(plain)
        )
        return losses[0] + losses[1]
