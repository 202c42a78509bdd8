"""DMD2, distribution matching distillation (Yin et al. 2024, arXiv 2405.14867; Yin et al. 2023, arXiv 2311.18828).

The student's samples are to have the distribution of the teacher's. Let x be a sample, x_t = x + t n, D_real the
teacher, and D_fake a critic, a diffusion model of the student's samples. Then the gradient of KL(student || teacher) at
noise level t is proportional to D_fake(x_t, t) - D_real(x_t, t), and the student takes the direction

    g = (D_fake(x_t, t) - D_real(x_t, t)) / mean |x - D_real(x_t, t)|,      L = 1/2 mean (x - stopgrad(x - g))^2

The critic begins as the teacher and is trained in turn with the student: `critic_steps` steps of it,

    L_critic = lambda(t) mean (D_fake(x_t, t) - x)^2,      lambda(t) = 1/t^2 + 1/sigma_data^2,

and one of the student. With `gan` a discriminator on the critic's features judges x_t, by the logistic loss.

A student of several steps is trained at the levels that it is sampled at. What it is given there is simulated: its own
samples, noised again, so that training and sampling see the same images ("backward simulation").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from unistep.checks import check_range
from unistep.core.denoiser import Denoiser
from unistep.core.distance import l2
from unistep.core.noise import karras_sigma
from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom
from unistep.core.weighting import karras
from unistep.errors import UserError
from unistep.objectives.dmd2_critic import FakeScore, fake_score, frozen
from unistep.objectives.protocol import (
    Critic,
    MethodConfig,
    ObjectiveInputs,
    PlainObjective,
    Student,
    dropout_generator,
)
from unistep.samplers.consistency import renoise
from unistep.samplers.guidance import Guided

_CRITIC = "critic"
_TINY = 1e-12  # that a mean difference is not divided by 0


@dataclass(frozen=True)
class DMD2Config(MethodConfig):
    """Numbers of DMD2.

    Args:
        student_steps: number of steps that the student is trained for; their levels are evenly spaced on the Karras
            grid, which those of sampling are where `num_train_timesteps` is a multiple of it plus 1.
        critic_steps: number of steps of the critic before each of the student.
        critic_lr: learning rate of the critic; null is the stage's.
        low: smallest noise level of the student's loss, as a position on the Karras grid: 0 is `sigma_min`, 1
            `sigma_max`.
        high: largest noise level of the student's loss, as a position on the same grid.
        gan: weight of the discriminator's loss in that of the student; 0 is no discriminator, 0.003 the paper's.
        critic_gan: weight of the discriminator's loss in that of the critic.
        guidance: scale w of classifier-free guidance by the teacher, which must have a null class; 1 is none.
        sigma_min: smallest noise level.
        sigma_max: largest noise level.
        rho: exponent of the Karras grid.

    Raises:
        UserError: a value is out of range, or two do not fit each other.
    """

    student_steps: int = 1
    critic_steps: int = 5
    critic_lr: float | None = None
    low: float = 0.02
    high: float = 0.98
    gan: float = 0.0
    critic_gan: float = 0.01
    guidance: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_range("student_steps", self.student_steps, 1, 1000)
        check_range("critic_steps", self.critic_steps, 1, 1_000_000)
        if self.critic_lr is not None and not self.critic_lr > 0:
            raise UserError(f"{self.critic_lr} must be positive, or null for the stage's", field="critic_lr")
        if not 0 <= self.low < self.high <= 1:
            raise UserError(f"`low` {self.low} must lie below `high` {self.high}, and both in [0, 1]")
        for name in ("gan", "critic_gan"):
            check_range(name, getattr(self, name), 0, 1000)
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(f"`sigma_min` {self.sigma_min} must lie above 0 and below `sigma_max` {self.sigma_max}")
        if not self.rho > 0:
            raise UserError(f"{self.rho} must be positive", field="rho")

    def build(self, inputs: ObjectiveInputs) -> "DMD2Objective":
        """Makes the objective; the critic begins as a copy of the teacher.

        Raises:
            ValueError: there is no teacher, or it is no network.
        """
        if inputs.teacher is None:
            raise ValueError("distribution matching needs a teacher")
        shape = None
        if self.gan:
            config: Any = getattr(getattr(inputs.student, "network", None), "config", None)
            if config is None:
                raise ValueError("`gan` needs a network with a config")
            shape = (config.in_channels, config.sample_size, config.sample_size)
        critic = fake_score(inputs.teacher, shape)
        return DMD2Objective(self, inputs.sigma_data, teacher=inputs.teacher, critic=critic)

    def model(self) -> dict[str, Any]:
        """A consistency model of this noise range: it maps noise to images, and is sampled as one."""
        return {"kind": "consistency", "sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}

    @property
    def needs_teacher(self) -> bool:
        """Returns true: the distribution is the teacher's."""
        return True

    def check_steps(self, total_steps: int) -> None:
        """Refuses a length in which the student is not trained.

        Raises:
            UserError: too few steps.
        """
        if total_steps <= self.critic_steps:
            raise UserError(
                f"`steps` {total_steps} are too few: the student is trained after each {self.critic_steps} steps of "
                f"the critic; give at least {self.critic_steps + 1}"
            )

    def levels(self) -> list[float]:
        """Noise levels that the student is trained at, from sigma_max down."""
        # Without tensors: a dry run has them without content.
        low, high, count = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho), self.student_steps
        return [self.sigma_max, *((high + i / count * (low - high)) ** self.rho for i in range(1, count))]


class DMD2Objective(PlainObjective):
    """Distribution matching of the student's samples, and denoising of them by a critic.

    Args:
        config: noise levels, turns and weights.
        sigma_data: standard deviation of the data, for the weight of the critic's loss.
        teacher: diffusion denoiser; `Guided` where there is guidance.
        critic: denoiser of the student's samples, on the same device; see `fake_score`.

    Raises:
        ValueError: guidance without a guided teacher, or a weight of the discriminator without one.
    """

    ungraded: str = "samples, forward"

    def __init__(self, config: DMD2Config, sigma_data: float = 0.5, *, teacher: Denoiser, critic: FakeScore) -> None:
        if config.guidance != 1 and not isinstance(teacher, Guided):
            raise ValueError(f"guidance {config.guidance} needs a guided teacher")
        if config.gan and critic.head is None:
            raise ValueError("`gan` needs a critic with a discriminator")
        self.config, self.sigma_data, self.teacher, self.critic = config, sigma_data, teacher, critic
        self.levels = config.levels()

    def trained(self, step: int) -> str | None:
        """The critic, but for the last step of each turn."""
        period = self.config.critic_steps + 1
        return None if step % period == period - 1 else _CRITIC

    def critics(self) -> Mapping[str, Critic]:
        """The critic, with its learning rate."""
        lr = self.config.critic_lr
        return {_CRITIC: Critic(self.critic, {} if lr is None else {"lr": lr})}

    def loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int | None,
    ) -> Float[Tensor, " B"]:
        """Loss of the network that is trained at `step`, for a sample of the class of each image."""
        inputs, sigma = self.simulated(student, x, class_labels, random, dropout_seed)
        position, noise = random.rand(), random.randn(*x.shape[1:])
        generator = dropout_generator(dropout_seed, x)
        if self.trained(step) is None:
            samples = student(inputs, sigma, class_labels, generator=generator)
            return self.student_loss(samples, class_labels, self.level(position, student=True), noise)
        with torch.no_grad():
            samples = student(inputs, sigma, class_labels, generator=generator)
        t = self.level(position)
        loss = self.critic_loss(samples, class_labels, t, noise)
        if self.config.gan:
            _, real = self.critic(x + expand(t, x.ndim) * random.randn(*x.shape[1:]), t, class_labels)
            assert real is not None
            loss = loss + self.config.critic_gan * functional.softplus(-real)
        return loss

    def simulated(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        random: ImageRandom,
        dropout_seed: int | None,
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, " B"]]:
        """The student's input at a step of sampling that is drawn for each image, and its noise level.

        Args:
            student: network in training.
            x: images, for their shape.
            class_labels: classes of the samples.
            random: numbers of each image.
            dropout_seed: seed of the dropout masks.
        """
        x_t = inputs = self.levels[0] * random.randn(*x.shape[1:])
        sigma = torch.full_like(inputs[:, 0, 0, 0], self.levels[0])
        if len(self.levels) == 1:
            return inputs, sigma
        chosen = random.randint(len(self.levels))
        for i in range(1, len(self.levels)):
            with torch.no_grad():
                before = torch.full_like(sigma, self.levels[i - 1])
                sample = student(x_t, before, class_labels, generator=dropout_generator(dropout_seed, x)).clamp(-1, 1)
                x_t = renoise(sample, random.randn(*x.shape[1:]), self.levels[i], self.config.sigma_min)
                inputs = torch.where(expand(chosen >= i, x.ndim), x_t, inputs)
                sigma = torch.where(chosen >= i, self.levels[i], sigma)
        return inputs, sigma

    def level(self, position: Float[Tensor, " B"], *, student: bool = False) -> Float[Tensor, " B"]:
        """Noise levels at positions of the Karras grid.

        Args:
            position: numbers in [0, 1), 0 at sigma_min.
            student: whether they are those of the student's loss, between `low` and `high`.
        """
        c = self.config
        if student:
            position = c.low + (c.high - c.low) * position
        return karras_sigma(1 - position, 2, c.sigma_min, c.sigma_max, c.rho)

    def student_loss(
        self,
        samples: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        t: Float[Tensor, " B"],
        noise: Float[Tensor, "B C H W"],
    ) -> Float[Tensor, " B"]:
        """Loss of the student for its samples, which have a gradient.

        Args:
            samples: the student's images.
            class_labels: their classes.
            t: noise levels.
            noise: Gaussian noise of unit variance.
        """
        x_t = samples + expand(t, samples.ndim) * noise
        with torch.set_grad_enabled(bool(self.config.gan) and torch.is_grad_enabled()), frozen(self.critic):
            fake, logit = self.critic(x_t, t, class_labels)
        with torch.no_grad():
            real = self.teacher(x_t, t, class_labels)
            scale = (samples - real).abs().mean((1, 2, 3), keepdim=True).clamp_min(_TINY)
            goal = samples - (fake - real) / scale
        loss = 0.5 * l2(samples, goal)
        if self.config.gan:
            assert logit is not None
            loss = loss + self.config.gan * functional.softplus(-logit)
        return loss

    def critic_loss(
        self,
        samples: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        t: Float[Tensor, " B"],
        noise: Float[Tensor, "B C H W"],
    ) -> Float[Tensor, " B"]:
        """Loss of the critic for the student's samples, without that of the discriminator for images of the data.

        Args:
            samples: the student's images, without gradient.
            class_labels: their classes.
            t: noise levels.
            noise: Gaussian noise of unit variance.
        """
        denoised, logit = self.critic(samples + expand(t, samples.ndim) * noise, t, class_labels)
        loss = karras(t, self.sigma_data) * l2(denoised, samples)
        if self.config.gan:
            assert logit is not None
            loss = loss + self.config.critic_gan * functional.softplus(logit)
        return loss

    def networks(self) -> dict[str, nn.Module]:
        """The denoiser of the critic."""
        return {_CRITIC: self.critic.denoiser}

    def state_dict(self) -> dict[str, Tensor]:
        """The critic's weights."""
        return dict(self.critic.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the critic."""
        self.critic.load_state_dict(state)
