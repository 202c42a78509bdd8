"""Common parts of the methods of flow maps: times, velocities of the trajectories, and what the student is called with.

A method's objective draws its times from `random`, and gets z_t and the velocity v of the trajectory at t:

    data      n - x, of the pair of image and noise
    teacher   (z_t - D) / t, of a diffusion model

Guidance of scale w by a teacher moves the clean image, as in `consistency.py`: v - (w - 1) (D(z, c) - D(z)) / t.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unistep.core import flow
from unistep.core.denoiser import Denoiser
from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom
from unistep.errors import UserError
from unistep.objectives.protocol import MethodConfig, ObjectiveInputs, PlainObjective, Student, dropout_generator
from unistep.samplers.guidance import Guided

# Velocities divide by t.
LEAST_SIGMA = 1e-3


@dataclass(frozen=True)
class FlowMapConfig(MethodConfig):
    """Numbers that all methods of flow maps have.

    Args:
        guidance: scale w of classifier-free guidance by the teacher, which must have a null class; 1 is none.
        label_dropout: probability that the null class stands in place of an image's own; above 0 the model can guide
            itself.
        sigma_min: smallest noise level; it must be 0, as flow maps end at the clean image.
        sigma_max: largest noise level.
        rho: exponent of the Karras grid that samplers use.

    Raises:
        UserError: a value is out of range.
    """

    guidance: float = 1.0
    label_dropout: float = 0.0
    sigma_min: float = 0.0
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise UserError(f"{self.label_dropout} is outside [0, 1)", field="label_dropout")
        if self.sigma_min != 0:
            raise UserError(f"{self.sigma_min} must be 0: flow maps end at the clean image", field="sigma_min")
        if not LEAST_SIGMA < self.sigma_max < math.inf:
            raise UserError(f"{self.sigma_max} must be above {LEAST_SIGMA:g} and finite", field="sigma_max")
        if not math.isfinite(self.guidance):
            raise UserError(f"{self.guidance} must be a finite number", field="guidance")
        if not self.rho > 0:
            raise UserError(f"{self.rho} must be positive", field="rho")

    def model(self) -> dict[str, Any]:
        """A flow map of this noise range."""
        noise = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}
        return {"kind": "consistency", "flow_map": True, **noise}

    @property
    def null_class(self) -> bool:
        """Whether labels are dropped."""
        return self.label_dropout > 0

    def network(self) -> dict[str, Any]:
        """A network with an input for the end of the trajectory."""
        return super().network() | {"end_embedding": True}


class FlowMapObjective(PlainObjective):
    """Base of the objectives of flow maps.

    Args:
        config: numbers of the method.
        inputs: teacher, null class and length of the stage.
        from_teacher: whether the trajectories are the teacher's.

    Raises:
        ValueError: the teacher or the null class is missing.
    """

    ungraded: str = "derivative, about"
    graded_calls: int = 1
    """Evaluations of the student with gradient."""
    ungraded_calls: int = 2
    """Evaluations without gradient; a forward-mode derivative counts as two."""

    def __init__(self, config: FlowMapConfig, inputs: ObjectiveInputs, *, from_teacher: bool = False) -> None:
        if from_teacher and inputs.teacher is None:
            raise ValueError("velocity 'teacher' needs a teacher")
        if config.guidance != 1 and not isinstance(inputs.teacher, Guided):
            raise ValueError(f"guidance {config.guidance} needs a guided teacher")
        if config.label_dropout and inputs.null_label is None:
            raise ValueError("label_dropout needs a null class")
        self.teacher: Denoiser | None = inputs.teacher if from_teacher or config.guidance != 1 else None
        self.total_steps, self.sigma_data = inputs.total_steps, inputs.sigma_data
        self.null_label, self.from_teacher = inputs.null_label, from_teacher
        self.earliest, self.latest = (sigma / (1 + sigma) for sigma in (LEAST_SIGMA, config.sigma_max))

    def clamped(self, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Times within those of the noise levels."""
        return t.clamp(self.earliest, self.latest)

    @torch.no_grad()
    def path_velocity(
        self,
        x: Float[Tensor, "B C H W"],
        noise: Float[Tensor, "B C H W"],
        z: Float[Tensor, "B C H W"],
        t: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None,
    ) -> Float[Tensor, "B C H W"]:
        """Velocity of the trajectories at (z, t).

        Args:
            x: clean images.
            noise: unit Gaussian noise.
            z: images at the times t.
            t: times.
            class_labels: classes of the images.
        """
        if self.teacher is None:
            return noise - x
        noisy = z / expand(1 - t, z.ndim), flow.sigma_of(t), class_labels
        if self.from_teacher:
            return flow.velocity(z, t, self.teacher(*noisy))
        assert isinstance(self.teacher, Guided)
        return noise - x - self.teacher.correction(*noisy) / expand(t, z.ndim)

    def null_labels(self, class_labels: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The null class, for each image."""
        assert self.null_label is not None
        return torch.full_like(class_labels, self.null_label)

    def hidden(self, class_labels: Int[Tensor, " B"] | None, dropped: Bool[Tensor, " B"]) -> Int[Tensor, " B"] | None:
        """Classes with the null class in the place of those that are dropped."""
        if class_labels is None or self.null_label is None:
            return class_labels
        return torch.where(dropped, self.null_labels(class_labels), class_labels)

    def countable(self) -> PlainObjective:
        """An objective with the same evaluations and without forward-mode derivatives, which cannot be counted."""
        return _Counted(self)


class _Counted(PlainObjective):
    """The network evaluations of an objective of flow maps."""

    def __init__(self, objective: FlowMapObjective) -> None:
        self.objective = objective
        self.ungraded = objective.ungraded

    def loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int | None,
    ) -> Float[Tensor, " B"]:
        """A number that depends on all evaluations."""
        t = torch.full((len(x),), 0.5, device=x.device)
        target = self.objective.path_velocity(x, x, x, t, class_labels)
        generator = dropout_generator(dropout_seed, x)
        with torch.no_grad():
            for _ in range(self.objective.ungraded_calls):
                target = target + student(x, t, class_labels, generator=generator)
        predictions = [student(x, t, class_labels, generator=generator) for _ in range(self.objective.graded_calls)]
        return (sum(predictions[1:], predictions[0]) - target).square().flatten(1).mean(1)
