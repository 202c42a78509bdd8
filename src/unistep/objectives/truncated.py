"""TCM, truncated consistency (Lee et al. 2024, arXiv 2410.14895): a second stage for the noise levels above t'.

The student begins as a consistency model. Above t' it goes on learning, from pairs t > r as in ECT; below t' its
beginning, frozen, answers:

    f(x, s) = student(x, s) for s >= t',  beginning(x, s) below
    L = E w(t, r) d( f(x_t, t), sg f(x_r, r) )  over t > t'   +   w_b times the same at t = t'

The second term is the boundary, where the frozen model is the target and holds the student. ln(t) follows a Student-t
distribution of a heavy tail (`core.student_t`): most levels are just above t', the others far above.

Every image draws whether it is at the boundary. The two means are over the expected numbers of images, so that the loss
does not depend on how the batch is split.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unistep.core import curriculum, distance
from unistep.core.denoiser import Denoiser
from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom
from unistep.core.student_t import TruncatedStudentT
from unistep.core.weighting import karras, reciprocal_gap
from unistep.errors import UserError
from unistep.objectives.protocol import MethodConfig, ObjectiveInputs, PlainObjective, Student, dropout_generator
from unistep.objectives.target import copy_target
from unistep.samplers.guidance import Guided


@dataclass(frozen=True)
class TruncatedConfig(MethodConfig):
    """Numbers of truncated consistency.

    Args:
        transition: noise level t' below which the frozen beginning answers.
        ratio: r/t at large t; at small t the gap is up to five times as wide.
        boundary: share of the images that are at t'.
        boundary_weight: weight of their mean loss.
        distance: distance of student and target: "pseudo-huber" or "l2" (mean square).
        huber_c: constant of "pseudo-huber"; 0 makes it the Euclidean norm.
        weighting: weight of a pair: "1/(t-r)", its root "1/sqrt(t-r)", "karras" (1/c_out(t)^2) or "uniform".
        df: degrees of freedom of the distribution of ln(t).
        scale: scale of ln(t).
        guidance: scale w of classifier-free guidance by the teacher, which must have a null class; 1 is none.
        sigma_min: smallest noise level of the model, where it is the identity.
        smallest_r: smallest r.
        sigma_max: largest noise level.
        rho: exponent of the Karras grid that samplers use.

    Raises:
        UserError: a value is out of range.
    """

    slots: ClassVar[tuple[str, ...]] = ()

    transition: float = 1.0
    ratio: float = 0.999
    boundary: float = 0.25
    boundary_weight: float = 0.1
    distance: Literal["pseudo-huber", "l2"] = "pseudo-huber"
    huber_c: float = 1e-8
    weighting: Literal["1/(t-r)", "1/sqrt(t-r)", "karras", "uniform"] = "1/(t-r)"
    df: float = 0.01
    scale: float = 0.2
    guidance: float = 1.0
    sigma_min: float = 0.0
    smallest_r: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min <= self.smallest_r < self.transition < self.sigma_max:
            raise UserError(
                f"`sigma_min` {self.sigma_min}, `smallest_r` {self.smallest_r}, `transition` {self.transition} and "
                f"`sigma_max` {self.sigma_max} must ascend"
            )
        for field in ("ratio", "boundary"):
            if not 0 < getattr(self, field) < 1:
                raise UserError(f"{getattr(self, field)} is outside (0, 1)", field=field)
        for field in ("df", "scale", "rho"):
            if not getattr(self, field) > 0:
                raise UserError(f"{getattr(self, field)} must be positive", field=field)
        for field in ("boundary_weight", "huber_c"):
            if not getattr(self, field) >= 0:
                raise UserError(f"{getattr(self, field)} must not be negative", field=field)

    def build(self, inputs: ObjectiveInputs) -> "TruncatedObjective":
        """Makes the objective; the frozen model is a copy of the student.

        Raises:
            ValueError: there is guidance and no guided teacher.
        """
        frozen = copy_target(inputs.student)
        return TruncatedObjective(self, frozen, sigma_data=inputs.sigma_data, teacher=inputs.teacher)

    def model(self) -> dict[str, Any]:
        """A consistency model of this noise range."""
        return {"kind": "consistency", "sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}


class TruncatedObjective(PlainObjective):
    """Consistency loss above a noise level, with a frozen model below it.

    Args:
        config: pairs, distance and weights.
        frozen: consistency model that answers below the transition; see `copy_target`.
        sigma_data: standard deviation of the data.
        teacher: diffusion denoiser, `Guided`; needed where there is guidance.

    Raises:
        ValueError: there is guidance and no guided teacher.
    """

    def __init__(
        self, config: TruncatedConfig, frozen: nn.Module, *, sigma_data: float = 0.5, teacher: Denoiser | None = None
    ) -> None:
        if config.guidance != 1 and not isinstance(teacher, Guided):
            raise ValueError(f"guidance {config.guidance} needs a guided teacher")
        self.config, self.frozen, self.sigma_data, self.teacher = config, frozen, sigma_data, teacher
        self.noise_levels = TruncatedStudentT(config.transition, config.sigma_max, 0.0, config.scale, config.df)

    def loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int | None,
    ) -> Float[Tensor, " B"]:
        """Loss of each image, with noise levels and noise drawn from `random`."""
        boundary = random.rand() < self.config.boundary
        t = self.noise_levels.sample(random.rand())
        t = torch.where(boundary, torch.full_like(t, self.config.transition), t)
        return self.loss_at(student, x, class_labels, t, boundary, random.randn(*x.shape[1:]), dropout_seed)

    def lower(self, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """r(t), that of ECT with one gap."""
        return curriculum.ect_r(t, 0, 1 / (1 - self.config.ratio)).clamp_min(self.config.smallest_r)

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        t: Float[Tensor, " B"],
        boundary: Bool[Tensor, " B"],
        unit_noise: Float[Tensor, "B C H W"],
        dropout_seed: int | None = 0,
    ) -> Float[Tensor, " B"]:
        """Loss at given noise levels, `boundary` true where they are the transition."""
        c = self.config
        at_boundary, above = x.new_tensor([c.boundary_weight / c.boundary, 1 / (1 - c.boundary)])
        return torch.where(boundary, at_boundary, above) * self.pair_loss(
            student, x, class_labels, t, unit_noise, dropout_seed
        )

    def pair_loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        t: Float[Tensor, " B"],
        unit_noise: Float[Tensor, "B C H W"],
        dropout_seed: int | None = 0,
    ) -> Float[Tensor, " B"]:
        """Weighted distance of each pair."""
        r = self.lower(t)
        x_t, x_r = (x + expand(level, x.ndim) * unit_noise for level in (t, r))
        # Of half precision the difference of the two outputs would be mostly rounding errors.
        with torch.autocast(x.device.type, enabled=False):
            prediction = student(x_t, t, class_labels, generator=dropout_generator(dropout_seed, x))
            with torch.no_grad():
                if isinstance(self.teacher, Guided):
                    x_r = x_r + expand(1 - r / t, x.ndim) * self.teacher.correction(x_t, t, class_labels)
                answers = [
                    model(x_r, r, class_labels, generator=dropout_generator(dropout_seed, x))
                    for model in (student, self.frozen)
                ]
                y = torch.where(expand(r >= self.config.transition, x.ndim), *answers)
            return self._weight(t, r) * self._distance(prediction, y)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return distance.l2(a, b) if self.config.distance == "l2" else distance.pseudo_huber(a, b, self.config.huber_c)

    def _weight(self, t: Tensor, r: Tensor) -> Tensor:
        match self.config.weighting:
            case "1/(t-r)":
                return reciprocal_gap(t, r)
            case "1/sqrt(t-r)":
                return reciprocal_gap(t, r).sqrt()
            case "karras":
                return karras(t, self.sigma_data)
            case "uniform":
                return torch.ones_like(t)

    def networks(self) -> dict[str, nn.Module]:
        """The frozen model."""
        return {"frozen": self.frozen}

    def state_dict(self) -> dict[str, Tensor]:
        """The frozen model's parameters."""
        return dict(self.frozen.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the frozen model."""
        self.frozen.load_state_dict(state)
