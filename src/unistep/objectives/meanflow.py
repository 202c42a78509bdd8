"""MeanFlow: the average velocity of a trajectory, learned from its own derivative (Geng et al. 2025, arXiv 2505.13447).

In flow time (`unistep.core.flow`) the average velocity over [r, t] satisfies

    u(z_t, t, r) = v(z_t, t) - (t - r) d/dt u(z_t, t, r)

The loss is the squared difference of the two sides, the right one without gradient: v is the velocity n - x of the pair
of image and noise, whose mean given z_t is that of the trajectory, and the derivative along (v, 1, 0) is one jvp.

    L = E w || u - sg(v - (t - r) du/dt) ||^2,   w = 1/(|| ||^2 + c)^p without gradient,   || || of the whole image
"""

from dataclasses import dataclass
from typing import Literal

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
from unistep.objectives.velocity import Velocity, average_velocity, self_guided, total_derivative, unwrapped


def meanflow_loss(
    u: Velocity,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    v: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    p: float,
    c: float,
    graded: Velocity | None = None,
) -> Float[Tensor, " B"]:
    """MeanFlow's loss of each image.

    Args:
        u: average velocity, for the derivative.
        z: images at the times t.
        t: times.
        r: ends, at most t.
        v: velocity of the trajectories, without gradient.
        class_labels: classes of the images; None for a network without classes.
        p, c: exponent and constant of the adaptive weight.
        graded: the same function, for the pass with gradients; None is `u`.
    """
    target = u_target(u, z, t, r, v, class_labels)
    error = ((graded or u)(z, t, r, class_labels) - target).square().flatten(1).sum(1)
    return adaptive(error, c, p) * error


@torch.no_grad()
def u_target(
    u: Velocity,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    v: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """v - (t - r) du/dt: the arguments are those of `meanflow_loss`."""
    _, du_dt = total_derivative(u, z, t, r, v, class_labels)
    return v - expand(t - r, z.ndim) * du_dt


def optimal_gradient_loss(
    u: Velocity,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    v: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    p: float,
    c: float,
    graded: Velocity | None = None,
) -> Float[Tensor, " B"]:
    """The loss whose gradient is the step to the target over a power of its length, 1/(length + c)^p.

    The arguments are those of `meanflow_loss`; the weight there is a function of the squared length.
    """
    value = (graded or u)(z, t, r, class_labels)
    step = u_target(u, z, t, r, v, class_labels) - value.detach()
    step = expand(adaptive(step.flatten(1).norm(dim=1), c, p), z.ndim) * step
    return (value - (value.detach() + step)).square().flatten(1).sum(1)


@dataclass(frozen=True)
class AverageVelocityConfig(FlowMapConfig):
    """Numbers of the methods that learn the average velocity over [r, t]: times and the adaptive weight.

    Args:
        P_mean: mean of ln(sigma) of the times t = sigma / (1 + sigma), which is drawn from a normal distribution.
        P_std: standard deviation of it.
        end_P_mean: mean of ln(sigma) of the ends r.
        end_P_std: standard deviation of it.
        times: way of the pairs: "below" takes the lower of t and r as the end, "sorted" the larger of both as the time.
        different: share of the images whose end differs from the time; the others learn the velocity itself.
        p: exponent of the adaptive weight.
        c: constant of it, of the squared norm of the whole image.
        guidance: scale w of classifier-free guidance by the teacher, which must have a null class; 1 is none.
        label_dropout: probability that the null class stands in place of an image's own; above 0 the model can guide
            itself.
        sigma_min: smallest noise level; it must be 0, as flow maps end at the clean image.
        sigma_max: largest noise level.
        rho: exponent of the Karras grid that samplers use.

    Raises:
        UserError: a value is out of range.
    """

    P_mean: float = -0.6
    P_std: float = 1.6
    end_P_mean: float = -4.0
    end_P_std: float = 1.6
    times: Literal["below", "sorted"] = "below"
    different: float = 0.75
    p: float = 0.75
    c: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("P_std", "end_P_std", "p"):
            if not getattr(self, field) >= 0:
                raise UserError(f"{getattr(self, field)} must not be negative", field=field)
        if not 0 <= self.different <= 1:
            raise UserError(f"{self.different} is outside [0, 1]", field="different")
        if not self.c > 0:
            raise UserError(f"{self.c} must be positive", field="c")

    def draw_times(
        self, normal: Float[Tensor, " B"], normal_end: Float[Tensor, " B"], uniform: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Returns times t and ends r <= t.

        Args:
            normal, normal_end: unit Gaussian numbers.
            uniform: uniform numbers in [0, 1), of which those below 1 - `different` make the end the time.
        """
        t = (self.P_mean + self.P_std * normal).sigmoid()
        r = (self.end_P_mean + self.end_P_std * normal_end).sigmoid()
        if self.times == "sorted":
            t, r = torch.maximum(t, r), torch.minimum(t, r)
        return t, torch.where(uniform < 1 - self.different, t, torch.minimum(t, r))


@dataclass(frozen=True)
class MeanFlowConfig(AverageVelocityConfig):
    """Numbers of MeanFlow.

    Args:
        P_mean: mean of ln(sigma) of the times t = sigma / (1 + sigma), which is drawn from a normal distribution.
        P_std: standard deviation of it.
        end_P_mean: mean of ln(sigma) of the ends r.
        end_P_std: standard deviation of it.
        times: way of the pairs: "below" takes the lower of t and r as the end, "sorted" the larger of both as the time.
        different: share of the images whose end differs from the time; the others learn the velocity itself.
        p: exponent of the adaptive weight.
        c: constant of it, of the squared norm of the whole image.
        loss: "l2", the squared error with that weight, or "optimal-gradient", a step towards the target over a power of
            its length.
        omega: weight of the data's velocity where the model guides itself; 1 with a `kappa` of 0 is no such guidance.
        kappa: weight of the model's own velocity with the class.
        from_time: smallest time with such guidance.
        to_time: largest time with such guidance.
        guidance: scale w of classifier-free guidance by the teacher, which must have a null class; 1 is none.
        label_dropout: probability that the null class stands in place of an image's own; above 0 the model can guide
            itself.
        sigma_min: smallest noise level; it must be 0, as flow maps end at the clean image.
        sigma_max: largest noise level.
        rho: exponent of the Karras grid that samplers use.

    Raises:
        UserError: a value is out of range, or two do not fit each other.
    """

    loss: Literal["l2", "optimal-gradient"] = "l2"
    omega: float = 1.0
    kappa: float = 0.0
    from_time: float = 0.0
    to_time: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.self_guided and not self.label_dropout:
            raise UserError(f"`omega` {self.omega} and `kappa` {self.kappa} need `label_dropout` above 0")

    @property
    def self_guided(self) -> bool:
        """Whether the model guides itself."""
        return self.omega != 1 or self.kappa != 0

    def build(self, inputs: ObjectiveInputs) -> "MeanFlowObjective":
        """Makes the objective.

        Raises:
            ValueError: a guided teacher or a null class is missing.
        """
        return MeanFlowObjective(self, inputs)


class MeanFlowObjective(FlowMapObjective):
    """MeanFlow's loss with times, noise and dropped classes that are drawn for each image.

    Args:
        config: times, weight and guidance.
        inputs: teacher and null class.

    Raises:
        ValueError: a guided teacher or a null class is missing.
    """

    def __init__(self, config: MeanFlowConfig, inputs: ObjectiveInputs) -> None:
        super().__init__(config, inputs)
        self.config = config
        self.ungraded_calls = 2 + config.self_guided * (1 + (config.kappa != 0))

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
        noise, t = random.randn(*x.shape[1:]), self.clamped(t)
        # One number decides both: the images that learn the null class are among those with r = t.
        return self.loss_at(
            student, x, class_labels, t, torch.minimum(r, t), noise, uniform < c.label_dropout, dropout_seed
        )

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        t: Float[Tensor, " B"],
        r: Float[Tensor, " B"],
        noise: Float[Tensor, "B C H W"],
        dropped: Bool[Tensor, " B"],
        dropout_seed: int | None = 0,
    ) -> Float[Tensor, " B"]:
        """Loss at given times, noise of unit variance and dropped classes."""
        c, z = self.config, flow.mixed(x, noise, t)
        u = average_velocity(unwrapped(student), dropout_seed)
        v = self.path_velocity(x, noise, z, t, class_labels)
        if c.self_guided and class_labels is not None:
            guided = self_guided(u, z, t, v, class_labels, self.null_labels(class_labels), c.omega, c.kappa)
            inside = (t >= c.from_time) & (t <= c.to_time) & ~dropped
            v = torch.where(expand(inside, x.ndim), guided, v)
        labels = self.hidden(class_labels, dropped)
        of_loss = meanflow_loss if c.loss == "l2" else optimal_gradient_loss
        return of_loss(u, z, t, r, v, labels, p=c.p, c=c.c, graded=average_velocity(student, dropout_seed))
