"""The two interfaces of a training method: its config, which a run sees, and its objective, which the trainer sees."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unistep.core.denoiser import Denoiser
from unistep.core.random import ImageRandom, image_seed

Distance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of images, [B, C, H, W] each, to one number an image, [B]."""


@runtime_checkable
class Student(Protocol):
    """A `Denoiser` in training, whose dropout masks are drawn by a generator."""

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        /,
        *,
        generator: torch.Generator | None = None,
        augment_labels: Float[Tensor, "B A"] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """Denoises a batch.

        Args:
            x_t: noisy images.
            sigma: their noise levels.
            class_labels: their classes; None for a network without classes.
            generator: source of the dropout masks; None drops nothing that has to be reproduced.
            augment_labels: augmentation of each image in numbers; given only to networks with inputs for it.

        Returns:
            Clean images.
        """
        ...


@dataclass(frozen=True)
class Critic:
    """A network that is trained in turn with the student, by a loss of its own.

    Args:
        network: the network, on the student's device.
        optimizer: settings of its optimizer that differ from the stage's, by field of `OptimizerConfig`; all but
            `name`, which is that of the stage.
    """

    network: nn.Module
    optimizer: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Objective(Protocol):
    """A loss for each step, and the networks kept beside the student. `PlainObjective` implements all but the loss.

    Each step trains one network: the student, or the critic that `trained` names. Its loss is that of the step, and no
    other network must get a gradient from it.
    """

    ungraded: str
    """Purpose of the student's evaluations without gradient, for tables of cost."""

    @property
    def whole_batch(self) -> bool:
        """Whether the loss of an image depends on the other images of its batch; then `among` has them."""
        ...

    def among(self, x: Float[Tensor, "N C H W"], class_labels: Int[Tensor, " N"] | None) -> None:
        """Takes the images of a batch that several processes share, before the loss of a part of them.

        Args:
            x: clean images of all processes, in [-1, 1].
            class_labels: their classes; None where there are none.
        """
        ...

    def loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int | None,
    ) -> Float[Tensor, " B"]:
        """Loss of each image.

        Args:
            student: network in training; it may be wrapped for several processes.
            x: clean images, in [-1, 1].
            class_labels: their classes; None where there are none.
            step: number of the step, from 0.
            random: numbers of each image, the only source of noise and noise levels.
            dropout_seed: seed of the dropout masks; None for a network that draws none.
        """
        ...

    def recorded(self, step: int) -> Hashable | None:
        """Numbers of the curriculum that the loss at `step` depends on, as one value; None where it cannot be recorded.

        The operations of two steps of one value differ in their tensors alone, so that a CUDA graph of one serves both.
        """
        ...

    def after_step(self, student: nn.Module, step: int) -> None:
        """Updates the networks beside the unwrapped student after step number `step`, if that trained the student."""
        ...

    def scalars(self, step: int) -> dict[str, float]:
        """Numbers of the curriculum at `step`, for the log."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs, as those of a target network."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores `state_dict`."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained beside the student's, by the same loss."""
        ...

    def critics(self) -> Mapping[str, Critic]:
        """Networks that are trained in turn with the student, by name; `state_dict` holds them too."""
        ...

    def trained(self, step: int) -> str | None:
        """Name of the critic that step number `step` trains; None is the student."""
        ...

    def networks(self) -> dict[str, nn.Module]:
        """Networks that the objective has made for itself, by name."""
        ...

    def phase(self, step: int) -> tuple[int, int | None]:
        """The steps [start, end) around `step` that share one optimizer, learning-rate schedule and average.

        `end` is None at the end of the run.
        """
        ...

    def phase_model(self, step: int) -> tuple[str, dict[str, Any]] | None:
        """Name of the model that the phase around `step` leaves behind, and the fields of its `ModelInfo`; or None."""
        ...

    def countable(self) -> "Objective":
        """An objective of the same cost whose loss can be computed on tensors without content."""
        ...


class PlainObjective:
    """Base of an objective that has no network, no curriculum and no phases beside its loss."""

    ungraded: str = "target, forward"

    @property
    def whole_batch(self) -> bool:
        """Returns false: the loss of an image is a function of the image."""
        return False

    def among(self, x: Float[Tensor, "N C H W"], class_labels: Int[Tensor, " N"] | None) -> None:
        """Does nothing."""

    def recorded(self, step: int) -> Hashable | None:
        """Returns None: a loss is recorded where its objective says so."""
        return None

    def after_step(self, student: nn.Module, step: int) -> None:
        """Does nothing."""

    def scalars(self, step: int) -> dict[str, float]:
        """Returns nothing."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Returns nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Does nothing."""

    def parameters(self) -> list[nn.Parameter]:
        """Returns nothing: the student alone is trained."""
        return []

    def critics(self) -> Mapping[str, Critic]:
        """Returns nothing."""
        return {}

    def trained(self, step: int) -> str | None:
        """Returns None: every step trains the student."""
        return None

    def networks(self) -> dict[str, nn.Module]:
        """Returns nothing."""
        return {}

    def phase(self, step: int) -> tuple[int, int | None]:
        """Returns the whole run."""
        return 0, None

    def phase_model(self, step: int) -> tuple[str, dict[str, Any]] | None:
        """Returns None."""
        return None

    def countable(self) -> Any:
        """Returns itself."""
        return self


@dataclass(frozen=True)
class ObjectiveInputs:
    """Ingredients of an objective.

    Args:
        student: network to be trained, on its device; a target network is made as a copy of it.
        total_steps: length of the stage, in optimizer steps.
        sigma_data: standard deviation of the data.
        teacher: diffusion model, `Guided` where the method's config has guidance; None where there is none.
        null_label: class that stands for none; None where the student has no such class.
        perceptual: distance "lpips"; None where it is not needed.
    """

    student: nn.Module
    total_steps: int
    sigma_data: float = 0.5
    teacher: Denoiser | None = None
    null_label: int | None = None
    perceptual: Distance | None = None


class MethodConfig(ABC):
    """Base of a method's config, a frozen dataclass of its numbers.

    `build` and `model` are a method's own; the rest has the values of a method that needs the student alone.
    """

    slots: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that make it another method; the others only change its numbers."""

    fixed_length: ClassVar[bool] = False
    """Whether a stage that has begun has to keep its length."""

    guidance: float = 1.0
    """Scale of classifier-free guidance by the teacher; 1 is none."""

    @abstractmethod
    def build(self, inputs: ObjectiveInputs) -> Objective:
        """Makes the objective.

        Raises:
            ValueError: the method needs something that is missing from `inputs`.
        """

    @abstractmethod
    def model(self) -> dict[str, Any]:
        """Fields of `unistep.formats.model.ModelInfo` that the method decides: kind, noise range, solver."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss evaluates a diffusion model."""
        return self.guidance != 1

    @property
    def needs_perceptual(self) -> bool:
        """Whether the loss compares images by LPIPS."""
        return False

    @property
    def null_class(self) -> bool:
        """Whether the student learns a class that stands for none."""
        return False

    def network(self) -> dict[str, Any]:
        """Fields of the network's config that the method decides, where the network has them.

        By default no label is hidden from the student, and no image is augmented.
        """
        return {"label_dropout": 0.0, "augment_dim": 0}

    def check_steps(self, total_steps: int) -> None:  # noqa: B027 - most curricula fit any length
        """Refuses a length that the curriculum does not fit.

        Raises:
            UserError: too few steps.
        """


def dropout_generator(seed: int | None, x: Tensor) -> torch.Generator | None:
    """A fresh generator on the device of `x`: two networks given one each of the same seed drop the same units.

    The seed may be one that an image's noise is drawn with: the masks are drawn from another stream. None makes none.
    """
    return None if seed is None else torch.Generator(x.device).manual_seed(image_seed(seed, 0))
