"""EDM denoising, the objective of diffusion models (Karras et al. 2022, arXiv 2206.00364, eq. 2 and table 1):

    L = E lambda(sigma) mean((D(x + sigma * noise, sigma) - x)^2),   ln sigma ~ N(P_mean, P_std^2)

with lambda = 1/c_out^2 = 1/sigma^2 + 1/sigma_data^2 ("karras").

With `label_dropout` p the class of an image is replaced by the null class with probability p, so that one network
learns D(x, sigma, class) and D(x, sigma): what classifier-free guidance needs (Ho & Salimans 2022, algorithm 1).

With `augment` the images are transformed before the noise is added, and the transformation is an input of the network:
see `unistep.core.augment`.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.augment import AUGMENT_LABELS, AugmentConfig, augment
from unistep.core.distance import l2
from unistep.core.noise import LogNormal
from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom
from unistep.core.weighting import WEIGHTINGS, WeightingName
from unistep.errors import UserError
from unistep.objectives.protocol import MethodConfig, ObjectiveInputs, PlainObjective, Student, dropout_generator


@dataclass(frozen=True)
class DenoisingConfig(MethodConfig):
    """Numbers of EDM denoising.

    Args:
        P_mean: mean of ln(sigma), which is drawn from a normal distribution.
        P_std: standard deviation of ln(sigma).
        weighting: weight of the squared error as a function of sigma; "karras" is EDM's.
        label_dropout: probability that the null class stands in place of an image's own; above 0 the model can guide
            a student.
        augment: probability of each of EDM's augmentations; needs a network with `augment_dim` 9 and data that are not
            flipped; 0 is none.

    Raises:
        UserError: a value is out of range.
    """

    P_mean: float = -1.2
    P_std: float = 1.2
    weighting: WeightingName = "karras"
    label_dropout: float = 0.0
    augment: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise UserError(f"{self.label_dropout} is outside [0, 1)", field="label_dropout")
        if not 0 <= self.augment <= 1:
            raise UserError(f"{self.augment} is outside [0, 1]", field="augment")
        if self.P_std < 0:
            raise UserError(f"{self.P_std} must not be negative", field="P_std")

    def build(self, inputs: ObjectiveInputs) -> "DenoisingObjective":
        """Makes the objective.

        Raises:
            ValueError: labels are to be dropped and there is no null class.
        """
        return DenoisingObjective(self, inputs.sigma_data, inputs.null_label)

    def model(self) -> dict[str, Any]:
        """A diffusion model."""
        return {"kind": "diffusion"}

    @property
    def null_class(self) -> bool:
        """Whether labels are dropped."""
        return self.label_dropout > 0

    def network(self) -> dict[str, Any]:
        """Inputs for the augmentation, where there is one."""
        return {"augment_dim": AUGMENT_LABELS if self.augment else 0}


class DenoisingObjective(PlainObjective):
    """Denoising error, weighted, at noise levels drawn from a log-normal distribution.

    Args:
        config: noise levels, weights and what is done to labels and images.
        sigma_data: standard deviation of the data.
        null_label: class that stands for none; needed where labels are dropped.

    Raises:
        ValueError: labels are to be dropped and there is no null class.
    """

    def __init__(self, config: DenoisingConfig, sigma_data: float = 0.5, null_label: int | None = None) -> None:
        if config.label_dropout and null_label is None:
            raise ValueError("label_dropout needs a null class")
        self.config = config
        self.null_label = null_label
        self.sigma_data = sigma_data
        self.noise_levels = LogNormal(config.P_mean, config.P_std)

    def loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int | None,
    ) -> Float[Tensor, " B"]:
        """Weighted denoising error of each image; the same at every step."""
        sigma = self.noise_levels.sample(random.randn())
        noise = random.randn(*x.shape[1:])
        if self.config.label_dropout and class_labels is not None:
            assert self.null_label is not None
            null = torch.full_like(class_labels, self.null_label)
            class_labels = torch.where(random.rand() < self.config.label_dropout, null, class_labels)
        if not self.config.augment:
            return self.loss_at(student, x, class_labels, sigma, noise, dropout_seed)
        # Drawn last, so that a run sees the noise of the one without augmentation.
        x, augment_labels = augment(x, AugmentConfig(self.config.augment), random)
        return self.loss_at(student, x, class_labels, sigma, noise, dropout_seed, augment_labels)

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        sigma: Float[Tensor, " B"],
        noise: Float[Tensor, "B C H W"],
        dropout_seed: int | None = 0,
        augment_labels: Float[Tensor, "B A"] | None = None,
    ) -> Float[Tensor, " B"]:
        """Loss at given noise levels.

        Args:
            student: network in training.
            x: images, already augmented.
            class_labels: their classes, null classes among them.
            sigma: noise levels.
            noise: Gaussian noise of unit variance.
            dropout_seed: seed of the dropout masks.
            augment_labels: augmentation of each image in numbers; None where there is none.
        """
        x_t = x + expand(sigma, x.ndim) * noise
        generator = dropout_generator(dropout_seed, x)
        if augment_labels is None:
            denoised = student(x_t, sigma, class_labels, generator=generator)
        else:
            denoised = student(x_t, sigma, class_labels, generator=generator, augment_labels=augment_labels)
        return WEIGHTINGS[self.config.weighting](sigma, self.sigma_data) * l2(denoised, x)

    def recorded(self, step: int) -> Hashable | None:
        """Returns one value for all steps; augmentation is not recorded."""
        return None if self.config.augment else ()

    def countable(self) -> "DenoisingObjective":
        """The objective without augmentation, which depends on the images' content and costs the network nothing."""
        return DenoisingObjective(replace(self.config, augment=0.0), self.sigma_data, self.null_label)
