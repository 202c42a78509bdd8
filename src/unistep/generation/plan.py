"""Sampling plans: the noise levels or the solver of a model, and the class of every image."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Int64
from torch import Tensor

from unistep.checks import check_one_of, check_range
from unistep.core.denoiser import Denoiser
from unistep.core.random import LABELS, ImageRandom, image_seed
from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.samplers.consistency import check_sigmas, sample_multistep, sigmas_from_indices
from unistep.samplers.table import find_solver


@dataclass(frozen=True)
class ConsistencyPlan:
    """Noise levels of a consistency sampler, from sigma_max down; nfe = len(sigmas).

    Raises:
        UserError: they do not descend strictly from sigma_max.
    """

    sigmas: tuple[float, ...]
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_sigmas(self.sigmas, self.sigma_max)

    @property
    def nfe(self) -> int:
        """Network evaluations an image."""
        return len(self.sigmas)

    def sample(self, denoiser: Denoiser, noise: Tensor, labels: Tensor | None, random: ImageRandom) -> Tensor:
        """Images in [-1, 1] from unit noise."""
        return sample_multistep(
            denoiser, noise, self.sigmas, labels, random=random, sigma_min=self.sigma_min, sigma_max=self.sigma_max
        )


@dataclass(frozen=True)
class DiffusionPlan:
    """Steps of a solver of `SOLVERS`, for a diffusion model.

    Raises:
        UserError: there is no such solver.
    """

    solver: str = "heun"
    steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        find_solver(self.solver)

    @property
    def nfe(self) -> int:
        """Network evaluations an image."""
        return find_solver(self.solver).evaluations(self.steps)

    def sample(self, denoiser: Denoiser, noise: Tensor, labels: Tensor | None, random: ImageRandom) -> Tensor:
        """Images in [-1, 1] from unit noise."""
        solver = find_solver(self.solver)
        sample = partial(solver.function(), noise=random) if solver.stochastic else solver.function()
        return sample(
            denoiser, noise, self.steps, labels, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho
        )


Plan = ConsistencyPlan | DiffusionPlan


def spaced_timesteps(steps: int, num_timesteps: int) -> list[int]:
    """Returns `steps` indices from 0, evenly spaced over a grid of `num_timesteps` levels.

    Raises:
        UserError: more steps than levels above sigma_min.
    """
    if not 1 <= steps < num_timesteps:
        raise UserError(f"steps {steps} must lie between 1 and {num_timesteps - 1}, the levels above sigma_min")
    return [i * (num_timesteps - 1) // steps for i in range(steps)]


def consistency_plan(
    timesteps: Sequence[int], num_timesteps: int, sigma_min: float, sigma_max: float, rho: float
) -> ConsistencyPlan:
    """The plan of grid indices; index 0 is sigma_max."""
    sigmas = sigmas_from_indices(timesteps, num_timesteps, sigma_min, sigma_max, rho)
    return ConsistencyPlan(tuple(sigmas), sigma_min, sigma_max)


def random_labels(seed: int, indices: Sequence[int], num_classes: int) -> Int64[Tensor, " B"]:
    """A class for each image of a run, drawn from the run's seed and the image's index."""
    return torch.tensor([image_seed(seed, i, LABELS) % num_classes for i in indices], dtype=torch.int64)


def default_plan(info: ModelInfo, steps: int | None = None) -> Plan:
    """Returns the plan of a model where only a number of steps is given, or nothing.

    A consistency model takes 1 step, or the model's own schedule where it has one of `steps` steps, or levels spaced
    evenly over its grid. A diffusion model takes `steps` steps of its solver, or the number that it was distilled for,
    or 18.

    Args:
        info: noise range, grid and kind of the model.
        steps: network evaluations of a consistency model, solver steps of a diffusion model.

    Raises:
        UserError: more steps than the grid has levels.
    """
    if info.kind == "diffusion":
        return DiffusionPlan(info.solver, steps or info.steps or 18, info.sigma_min, info.sigma_max, info.rho)
    steps = steps or 1
    chosen = info.schedule(steps) or spaced_timesteps(steps, info.num_train_timesteps)
    return consistency_plan(chosen, info.num_train_timesteps, info.sigma_min, info.sigma_max, info.rho)


def make_plan(
    info: ModelInfo,
    *,
    steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    solver: str | None = None,
) -> Plan:
    """Returns the plan that a user's choice means for a model.

    Args:
        info: noise range, grid and kind of the model.
        steps: network evaluations of a consistency model, solver steps of a diffusion model.
        timesteps: indices of a consistency model's noise grid, from 0 (sigma_max) up.
        sigmas: noise levels of a consistency model, from sigma_max down.
        solver: ODE solver of a diffusion model.

    Raises:
        UserError: more than one of `steps`, `timesteps`, `sigmas`; one that is not for this kind of model; numbers that
            are no schedule.
    """
    check_range("steps", steps, 1, 10_000)
    check_one_of(steps=steps, timesteps=timesteps, sigmas=sigmas)
    if info.kind == "diffusion":
        if timesteps is not None or sigmas is not None:
            raise UserError("`timesteps` and `sigmas` are for consistency models", "for a diffusion model give `steps`")
        plan = default_plan(info, steps)
        return plan if solver is None else dataclasses.replace(plan, solver=solver)
    if solver is not None:
        raise UserError(f"`solver` {solver} is for diffusion models; this is a consistency model")
    if timesteps is not None:
        return consistency_plan(timesteps, info.num_train_timesteps, info.sigma_min, info.sigma_max, info.rho)
    if sigmas is not None:
        return ConsistencyPlan(tuple(map(float, sigmas)), info.sigma_min, info.sigma_max)
    return default_plan(info, steps)


def make_labels(
    num_classes: int, num_images: int, class_labels: int | Sequence[int] | None = None, seed: int = 0
) -> Int64[Tensor, " N"] | None:
    """Returns the class of every image, or None for an unconditional model.

    Args:
        num_classes: classes of the model; 0 for an unconditional one.
        num_images: number of images.
        class_labels: one class for all images, or a list that is repeated; None draws them from the seed.
        seed: seed of the run; the class of image i depends on (seed, i).

    Raises:
        UserError: a class that the model does not have.
    """
    if class_labels is None:
        return random_labels(seed, range(num_images), num_classes) if num_classes else None
    labels = check_labels(class_labels, num_classes)
    return torch.tensor(labels).repeat(-(-num_images // len(labels)))[:num_images]


def check_labels(class_labels: int | Sequence[int], num_classes: int) -> list[int]:
    """Returns the given classes as a list.

    Args:
        class_labels: one class or several.
        num_classes: classes of the model; 0 for an unconditional one.

    Raises:
        UserError: the model has no classes, or not these; the list is empty.
    """
    labels = [class_labels] if isinstance(class_labels, int) else [int(c) for c in class_labels]
    shown = ",".join(map(str, labels))
    if not num_classes:
        raise UserError(f"`class_labels` {shown}: this model has no classes", "leave it out")
    if not labels:
        raise UserError("is empty", "give a class, or leave it out", field="class_labels")
    for label in labels:
        if not 0 <= label < num_classes:
            raise UserError(f"`class_labels` {label}: this model has the classes 0 to {num_classes - 1}")
    return labels
