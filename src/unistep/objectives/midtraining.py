"""CMT, consistency mid-training (arXiv 2509.24526): a stage between the diffusion model and consistency tuning.

From x + sigma_max n the teacher's trajectory is followed by M steps of DPM-Solver++ (`samplers.dpmpp`). At all M points
of it, the student learns where it ends:

    L = E 1/M sum_i d( f(x_i, sigma_i), x_M )

without target network, stop-gradient and weights. Tuning follows with a gap that is small from its first step on: ECT
with q = 4096 and one stage.

A batch of B images is B trajectories: the student is trained on M B noisy images in a step.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core import distance
from unistep.core.denoiser import Denoiser
from unistep.core.random import ImageRandom
from unistep.errors import UserError
from unistep.objectives.protocol import (
    Distance,
    MethodConfig,
    ObjectiveInputs,
    PlainObjective,
    Student,
    dropout_generator,
)
from unistep.samplers.dpmpp import log_levels, trajectory
from unistep.samplers.guidance import Guided


@dataclass(frozen=True)
class MidTrainingConfig(MethodConfig):
    """Numbers of consistency mid-training.

    Args:
        points: number of steps of the teacher, M, and of points of the trajectory that the student learns from.
        distance: distance of student and end: "l2" (mean square), "norm" (of the whole image) or "lpips".
        end: noise level at which the teacher's trajectories end.
        guidance: scale w of classifier-free guidance by the teacher, which must have a null class; 1 is none.
        sigma_min: smallest noise level of the model, where it is the identity.
        sigma_max: largest noise level.
        rho: exponent of the Karras grid that samplers use.

    Raises:
        UserError: a value is out of range.
    """

    slots: ClassVar[tuple[str, ...]] = ()

    points: int = 16
    distance: Literal["l2", "norm", "lpips"] = "l2"
    end: float = 0.002
    guidance: float = 1.0
    sigma_min: float = 0.0
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 3 <= self.points <= 1000:
            raise UserError(f"{self.points} must lie between 3, the order of the solver, and 1000", field="points")
        if not 0 < self.end < self.sigma_max:
            raise UserError(f"`end` {self.end} must lie between 0 and `sigma_max` {self.sigma_max}")
        if not 0 <= self.sigma_min <= self.end:
            raise UserError(f"`sigma_min` {self.sigma_min} must lie between 0 and `end` {self.end}")
        if not self.rho > 0:
            raise UserError(f"{self.rho} must be positive", field="rho")

    def build(self, inputs: ObjectiveInputs) -> "MidTrainingObjective":
        """Makes the objective.

        Raises:
            ValueError: a teacher or a perceptual distance is missing.
        """
        return MidTrainingObjective(self, teacher=inputs.teacher, perceptual=inputs.perceptual)

    def model(self) -> dict[str, Any]:
        """A consistency model of this noise range."""
        return {"kind": "consistency", "sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}

    @property
    def needs_teacher(self) -> bool:
        """Returns true: the trajectories are a teacher's."""
        return True

    @property
    def needs_perceptual(self) -> bool:
        """Whether the distance is LPIPS."""
        return self.distance == "lpips"


class MidTrainingObjective(PlainObjective):
    """Distance between the student's outputs along a trajectory and the end of it.

    Args:
        config: trajectories and distance.
        teacher: diffusion denoiser; `Guided` where there is guidance.
        perceptual: distance "lpips" of two batches of images, [B].

    Raises:
        ValueError: teacher or perceptual distance is missing.
    """

    def __init__(
        self, config: MidTrainingConfig, *, teacher: Denoiser | None = None, perceptual: Distance | None = None
    ) -> None:
        if teacher is None:
            raise ValueError("mid-training needs a teacher")
        if config.guidance != 1 and not isinstance(teacher, Guided):
            raise ValueError(f"guidance {config.guidance} needs a guided teacher")
        if config.distance == "lpips" and perceptual is None:
            raise ValueError("distance 'lpips' needs its network")
        self.config, self.teacher, self.perceptual = config, teacher, perceptual
        self.sigmas = log_levels(config.points, config.end, config.sigma_max)

    def loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int | None,
    ) -> Float[Tensor, " B"]:
        """Mean loss of the points of each image's trajectory."""
        return self.loss_at(student, x, class_labels, random.randn(*x.shape[1:]), dropout_seed)

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        unit_noise: Float[Tensor, "B C H W"],
        dropout_seed: int | None = 0,
    ) -> Float[Tensor, " B"]:
        """Loss with given noise of unit variance."""
        *points, end = trajectory(self.teacher, x + self.config.sigma_max * unit_noise, self.sigmas, class_labels)
        count = len(points)
        sigma = torch.tensor(self.sigmas[:-1], device=x.device, dtype=x.dtype).repeat_interleave(len(x))
        labels = None if class_labels is None else class_labels.repeat(count)
        prediction = student(torch.cat(points), sigma, labels, generator=dropout_generator(dropout_seed, x))
        return self._distance(prediction, end.repeat(count, 1, 1, 1)).view(count, -1).mean(0)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        if self.perceptual is not None and self.config.distance == "lpips":
            return self.perceptual(a, b)
        return distance.pseudo_huber(a, b) if self.config.distance == "norm" else distance.l2(a, b)
