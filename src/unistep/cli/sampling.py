"""The flags of sampling, of the commands that make images, and what they mean for a model."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unistep.cli.arguments import MAX_SEED, check_range
from unistep.errors import UserError
from unistep.samplers.table import SolverName

if TYPE_CHECKING:
    from torch import Tensor

    from unistep.formats.model import ModelInfo
    from unistep.generation.plan import Plan

# Far beyond all use: a mistyped number should not run for a year.
MOST_IMAGES = 10_000_000
_MOST = {"batch_size": 100_000, "steps": 10_000}


@dataclass(frozen=True)
class SamplingConfig:
    """How images are made.

    Args:
        steps: network evaluations of a consistency model (default 1), solver steps of a diffusion model (default: its
            own, where it was distilled for a number of steps, else 18).
        timesteps: indices of the model's noise grid, from 0 (sigma_max) up, as 0,22; instead of --steps.
        sigmas: noise levels directly, from sigma_max down, as 80,0.8; instead of --steps.
        solver: of diffusion models; default: the model's own, which is heun where it says nothing.
        class_labels: one class for all, or a list as 0,1,2 that is repeated; default: drawn from the seed.
        seed: of the run; image i is made from seed and i alone.
        batch_size: images at once on an accelerator; a CPU takes few at once whatever is given.
        dtype: what the network computes in; auto is what is fastest on the device.
        device: cpu, cuda, cuda:1 or mps; default: cuda where there is one.
    """

    steps: int | None = None
    timesteps: str | None = None
    sigmas: str | None = None
    solver: SolverName | None = None
    class_labels: str | None = None
    seed: int = 0
    batch_size: int = 64
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    device: str | None = None

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            check_range(f"--{name}", getattr(self, name), 1, most)
        check_range("--seed", self.seed, 0, MAX_SEED)
        given = [f"--{n}" for n in ("steps", "timesteps", "sigmas") if getattr(self, n) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other; give one")


def make_plan(info: "ModelInfo", config: SamplingConfig) -> "Plan":
    """The sampler that the flags name, for a model of `info`."""
    from unistep.generation.plan import ConsistencyPlan, consistency_plan, default_plan

    if info.kind == "diffusion":
        if config.timesteps is not None or config.sigmas is not None:
            raise UserError("--timesteps and --sigmas are for consistency models; for a diffusion model give --steps")
        plan = default_plan(info, config.steps)
        return plan if config.solver is None else dataclasses.replace(plan, solver=config.solver)
    if config.solver is not None:
        raise UserError(f"--solver {config.solver} is for diffusion models; this is a consistency model")
    if config.timesteps is not None:
        indices = [int(t) for t in numbers("timesteps", config.timesteps, int)]
        return consistency_plan(indices, info.num_train_timesteps, info.sigma_min, info.sigma_max, info.rho)
    if config.sigmas is not None:
        return ConsistencyPlan(tuple(numbers("sigmas", config.sigmas, float)), info.sigma_min, info.sigma_max)
    return default_plan(info, config.steps)


def make_labels(num_classes: int, config: SamplingConfig, num_images: int) -> "Tensor | None":
    """The class of every image, or None for an unconditional model."""
    import torch

    from unistep.generation.plan import random_labels

    if not num_classes:
        if config.class_labels is not None:
            raise UserError(f"--class_labels {config.class_labels}: this model has no classes; leave it out")
        return None
    if config.class_labels is None:
        return random_labels(config.seed, range(num_images), num_classes)
    chosen = [int(c) for c in numbers("class_labels", config.class_labels, int)]
    for c in chosen:
        if not 0 <= c < num_classes:
            raise UserError(f"--class_labels {c}: this model has the classes 0 to {num_classes - 1}")
    return torch.tensor(chosen).repeat(-(-num_images // len(chosen)))[:num_images]


def numbers(flag: str, text: str, kind: type[int] | type[float]) -> list[float]:
    """`0,22` or `[0, 22]` as numbers."""
    try:
        return [kind(part) for part in text.strip("[]() ").split(",")]
    except ValueError:
        example = {"timesteps": "0,22", "sigmas": "80,0.8", "class_labels": "0,1,2"}[flag]
        kinds = "whole numbers" if kind is int else "numbers"
        raise UserError(f"--{flag} {text or repr('')}: expected {kinds} separated by commas, as {example}") from None
