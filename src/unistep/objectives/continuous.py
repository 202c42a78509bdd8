"""Continuous-time consistency: sCD and sCT (Lu and Song 2024, arXiv 2410.11081, algorithm 1).

The limit t - r -> 0 of the discrete objective, without an error of steps. In TrigFlow's variables (core/trigflow.py)
the student f(x_t, t) = cos(t) x_t - sin(t) sigma_d F(x_t / sigma_d, t) should not change along a trajectory. With F^-
for F without gradient, its change times cos(t) is

    g = cos(t) df^-/dt = -cos(t)^2 (sigma_d F^- - dx_t/dt) - r cos(t) sin(t) (x_t + sigma_d dF^-/dt)

    dx_t/dt = sigma_d F_teacher(x_t / sigma_d, t)         sCD: the teacher's velocity
              cos(t) sigma_d z - sin(t) x                 sCT: that of the pair of image and noise

and the loss, D numbers an image, is

    L = e^{w(t)} / D || F - F^- - g ||^2 - w(t)

whose gradient is that of -2 e^{w(t)} / D <g, F>. r rises from 0 to 1 in the first steps of a run: dF^-/dt is the
unstable part. w(t) is learned: at its optimum e^{-w} is the mean loss at t, so that every t weighs the same; a fixed
weight of t, which some implementations put before the norm (1/sigma), would only be learned away.

dF^-/dt is one forward-mode derivative, of `tangent.py`.

Guidance of scale w: the velocity is the guided teacher's v_w. The pair's velocity is (cos(t) x_t - x) / sin(t), where
the clean image x stands in for the teacher's D, and moves by what guidance adds to D as in consistency.py:

    dx_t/dt = cos(t) sigma_d z - sin(t) x - (w - 1) (D(x_t, t, c) - D(x_t, t)) / sin(t)
            = cos(t) sigma_d z - sin(t) x + (w - 1) (v(x_t, t, c) - v(x_t, t))
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unistep.core import trigflow
from unistep.core.denoiser import Denoiser
from unistep.core.noise import LogNormal
from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom
from unistep.errors import UserError
from unistep.objectives.protocol import MethodConfig, ObjectiveInputs, PlainObjective, Student, dropout_generator
from unistep.objectives.tangent import tangent
from unistep.samplers.guidance import Guided

# ln(sigma) is drawn from a normal distribution, which has no lower end; c_out must not be 0.
_SMALLEST_SIGMA = 1e-6
_WEIGHT_FEATURES = 16


@dataclass(frozen=True)
class ContinuousConfig(MethodConfig):
    """Numbers of continuous-time consistency, trained (sCT) or distilled (sCD).

    Args:
        velocity: trajectories along which the model is to be constant: those of the teacher ("teacher", sCD) or of the
            pairs of image and noise ("data", sCT).
        P_mean: mean of ln(sigma), which is drawn from a normal distribution.
        P_std: standard deviation of ln(sigma).
        tangent_warmup: number of steps in which the unstable part of the tangent grows from nothing to all; 0 is all
            of it from the first step on.
        tangent: "normalize" divides each image's tangent by its root mean square plus `tangent_c`, "clip" limits its
            values to [-1, 1], "none" leaves it as it is.
        tangent_c: constant c of "normalize"; tangents far below it stay small.
        adaptive_weight: whether the weight of each t is learned; else it is 1.
        guidance: scale w of classifier-free guidance by the teacher, which must have a null class; 1 is none.
        sigma_min: smallest noise level; it must be 0, as TrigFlow ends at the clean image.
        sigma_max: largest noise level.
        rho: exponent of the Karras grid that samplers use.

    Raises:
        UserError: a value is out of range.
    """

    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    velocity: Literal["data", "teacher"] = "data"
    P_mean: float = -1.0
    P_std: float = 1.4
    tangent_warmup: int = 10_000
    tangent: Literal["normalize", "clip", "none"] = "normalize"
    tangent_c: float = 0.1
    adaptive_weight: bool = True
    guidance: float = 1.0
    sigma_min: float = 0.0
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        for field in ("P_mean", "guidance"):
            if not math.isfinite(getattr(self, field)):
                raise UserError(f"{getattr(self, field)} must be a finite number", field=field)
        for field in ("P_std", "tangent_c", "rho"):
            if not 0 < getattr(self, field) < math.inf:
                raise UserError(f"{getattr(self, field)} must be positive and finite", field=field)
        if self.tangent_warmup < 0:
            raise UserError(f"{self.tangent_warmup} must not be negative", field="tangent_warmup")
        if self.sigma_min != 0:
            raise UserError(f"{self.sigma_min} must be 0: training ends at the clean image", field="sigma_min")
        if not _SMALLEST_SIGMA < self.sigma_max < math.inf:
            raise UserError(f"{self.sigma_max} must be above {_SMALLEST_SIGMA:g} and finite", field="sigma_max")

    def build(self, inputs: ObjectiveInputs) -> "ContinuousObjective":
        """Makes the objective.

        Raises:
            ValueError: a teacher is missing.
        """
        return ContinuousObjective(self, inputs.total_steps, inputs.sigma_data, teacher=inputs.teacher)

    def model(self) -> dict[str, Any]:
        """A consistency model of this noise range."""
        return {"kind": "consistency", "sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}

    @property
    def needs_teacher(self) -> bool:
        """Whether the velocity is the teacher's, or guided by it."""
        return self.velocity == "teacher" or self.guidance != 1

    def warmup(self, step: int) -> float:
        """Factor r of the tangent's unstable part at `step`, between 0 and 1."""
        return min(1.0, step / self.tangent_warmup) if self.tangent_warmup else 1.0


class ContinuousObjective(PlainObjective):
    """Squared norm of the student's tangent, weighted.

    The student must be a `Preconditioned` network with EDM's scaling and this `sigma_data`, and its network must have
    forward-mode derivatives: those of this package do. They are taken beside the student's pass, not through it, so
    that the student may be wrapped for several processes.

    Args:
        config: noise levels, tangent and weights.
        total_steps: length of the run, in steps.
        sigma_data: standard deviation of the data.
        teacher: diffusion denoiser; needed for its velocity, and `Guided` where there is guidance.

    Raises:
        ValueError: the teacher is missing.
    """

    ungraded: str = "tangent, about"

    def __init__(
        self, config: ContinuousConfig, total_steps: int, sigma_data: float = 0.5, *, teacher: Denoiser | None = None
    ) -> None:
        if config.velocity == "teacher" and teacher is None:
            raise ValueError(f"velocity {config.velocity!r} needs a teacher")
        if config.guidance != 1 and not isinstance(teacher, Guided):
            raise ValueError(f"guidance {config.guidance} needs a guided teacher")
        self.config = config
        self.total_steps = total_steps
        self.sigma_data = sigma_data
        self.teacher = teacher
        # Zero, so that the weight is 1 at first.
        self.weight = nn.Parameter(torch.zeros(_WEIGHT_FEATURES)) if config.adaptive_weight else None

    def loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int | None,
    ) -> Float[Tensor, " B"]:
        """Loss of each image at `step`, with noise and its level drawn from `random`."""
        c = self.config
        sigma = LogNormal(c.P_mean, c.P_std).sample(random.randn()).clamp(_SMALLEST_SIGMA, c.sigma_max)
        return self.loss_at(student, x, class_labels, sigma, random.randn(*x.shape[1:]), step, dropout_seed)

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        sigma: Float[Tensor, " B"],
        unit_noise: Float[Tensor, "B C H W"],
        step: int,
        dropout_seed: int | None = 0,
    ) -> Float[Tensor, " B"]:
        """Loss at given noise levels and noise of unit variance."""
        x_sigma = x + expand(sigma, x.ndim) * unit_noise
        with torch.no_grad():
            dx_dt = self.dx_dt(x, unit_noise, x_sigma, sigma, class_labels)
            _, g = tangent(
                student,
                x_sigma,
                sigma,
                dx_dt,
                class_labels,
                warmup=self.config.warmup(step),
                sigma_data=self.sigma_data,
                generator=dropout_generator(dropout_seed, x),
            )
            g = self._bounded(g)
        # After the tangent, whose memory is free again by now.
        prediction = student(x_sigma, sigma, class_labels, generator=dropout_generator(dropout_seed, x))
        # F - F^- of value 0 and the gradient of F. Taken from D = c_skip x + c_out F_edm, the two F would differ by
        # rounding errors over c_out; so they do not, however small sigma is.
        c_out = expand(trigflow.sin_cos(sigma, self.sigma_data)[0] * self.sigma_data, x.ndim)
        difference = (prediction.detach() - prediction) / c_out
        loss = (difference - g).square().flatten(1).mean(1)
        if self.weight is None:
            return loss
        w = self.log_weight(sigma)
        return w.exp() * loss - w

    def dx_dt(
        self,
        x: Float[Tensor, "B C H W"],
        unit_noise: Float[Tensor, "B C H W"],
        x_sigma: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None,
    ) -> Float[Tensor, "B C H W"]:
        """Velocity dx_t/dt of the config's trajectories."""
        if self.config.velocity == "teacher":
            assert self.teacher is not None
            if isinstance(self.teacher, Guided):
                return self._guided_velocity(self.teacher)(x_sigma, sigma, class_labels)
            return trigflow.velocity(self.teacher, x_sigma, sigma, class_labels, sigma_data=self.sigma_data)
        sin, cos = (expand(v, x.ndim) for v in trigflow.sin_cos(sigma, self.sigma_data))
        dx_dt = cos * self.sigma_data * unit_noise - sin * x
        if self.config.guidance != 1:
            assert isinstance(self.teacher, Guided)
            dx_dt = dx_dt + self._guided_velocity(self.teacher).correction(x_sigma, sigma, class_labels)
        return dx_dt

    def _guided_velocity(self, teacher: Guided) -> Guided:
        """Guides the velocity as `teacher` guides the clean image, of which it is an affine function."""

        def of_one(x_sigma: Tensor, sigma: Tensor, class_labels: Tensor | None = None, /) -> Tensor:
            return trigflow.velocity(teacher.denoiser, x_sigma, sigma, class_labels, sigma_data=self.sigma_data)

        return Guided(of_one, teacher.scale, teacher.null_label)

    def _bounded(self, g: Tensor) -> Tensor:
        match self.config.tangent:
            case "normalize":
                # The paper writes g / (||g|| + c). Public code differs in whether ||g|| is divided by sqrt(D); so it
                # is here. c then means the same at every resolution, and the loss is about 1, where w(t) starts.
                # The paper's form is this one with c / sqrt(D), but for a factor that w(t) takes up.
                return g / (g.square().mean((1, 2, 3), keepdim=True).sqrt() + self.config.tangent_c)
            case "clip":
                return g.clamp(-1, 1)
            case "none":
                return g

    def log_weight(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """w(t): a linear function of cosines of the quantile of t under the distribution it is drawn from.

        They are orthonormal under that distribution, so that gradient descent learns all of them equally fast.

        Raises:
            ValueError: the config has no learned weight.
        """
        if self.weight is None:
            raise ValueError("adaptive_weight is off: there is no learned weight")
        quantile = torch.special.ndtr((sigma.log() - self.config.P_mean) / self.config.P_std)
        k = torch.arange(_WEIGHT_FEATURES, device=sigma.device, dtype=sigma.dtype)
        norms = torch.where(k == 0, 1.0, math.sqrt(2))
        features = norms * (math.pi * k * quantile[:, None]).cos()
        # Not a matrix product, which autocast would take in half precision.
        return (features * self.weight.to(sigma)).sum(1)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the learned weight."""
        return [] if self.weight is None else [self.weight]

    def scalars(self, step: int) -> dict[str, float]:
        """Factor r of the tangent's unstable part."""
        return {"tangent_warmup": self.config.warmup(step)}

    def state_dict(self) -> dict[str, Tensor]:
        """The learned weight's parameters."""
        return {} if self.weight is None else {"weight": self.weight.detach()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the learned weight."""
        if self.weight is not None:
            with torch.no_grad():
                self.weight.copy_(state["weight"])

    def countable(self) -> "ContinuousObjective":
        """The objective with two evaluations in place of the tangent."""
        return _CountableObjective(self.config, self.total_steps, self.sigma_data, teacher=self.teacher)


class _CountableObjective(ContinuousObjective):
    """The network evaluations of the objective, without forward-mode derivatives, which PyTorch's FakeTensorMode lacks.

    A forward-mode derivative costs two evaluations in convolutions and matrix products; attention has one product more.
    """

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        sigma: Float[Tensor, " B"],
        unit_noise: Float[Tensor, "B C H W"],
        step: int,
        dropout_seed: int | None = 0,
    ) -> Float[Tensor, " B"]:
        """A number that depends on all evaluations."""
        generator = dropout_generator(dropout_seed, x)
        prediction = student(x, sigma, class_labels, generator=generator)
        with torch.no_grad():
            target = self.dx_dt(x, unit_noise, x, sigma, class_labels)
            for _ in range(2):
                target = target + student(x, sigma, class_labels, generator=generator)
        return (prediction - target).square().flatten(1).mean(1)
