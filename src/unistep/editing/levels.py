"""Noise levels of edits: given, by default, from any level down, and strength in place of a level.

The levels of an edit of n steps from sigma are the first n of the Karras grid of n + 1 levels between sigma and
sigma_min (Karras et al. 2022, eq. 5); the last, sigma_min, needs no evaluation. A task's own levels, `DefaultLevels`,
are such a grid too, from the level at which the task begins to one after which nothing is left to be changed.

Strength is what diffusers' image-to-image pipelines call it, the share of the sampler's way that an edit goes: 0
leaves an image as it is, 1 begins at sigma_max, and between them it is even in sigma^(1/rho), as the grid is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from unistep.checks import check_one_of
from unistep.core.noise import karras_sigma, karras_sigmas
from unistep.errors import UserError
from unistep.formats.model import ModelInfo


@dataclass(frozen=True)
class DefaultLevels:
    """Noise levels of a task where none are given.

    Args:
        sigma_first: level at which the edit begins; a task that begins at the noise of its input has none of its own.
        sigma_last: level of the last evaluation.
        steps: number of levels.
        settle: number of evaluations without noise after these, see `unistep.editing.methods.settle`.
    """

    sigma_first: float = 80.0
    sigma_last: float = 0.3
    steps: int = 1
    settle: int = 0

    def at(self, steps: int | None = None, *, first: float | None = None, rho: float = 7.0) -> list[float]:
        """Returns the noise levels of an edit of `steps` steps, descending.

        Args:
            steps: number of levels; None is the task's own number.
            first: level at which the edit begins; None is the task's own.
            rho: exponent of the grid.

        Raises:
            UserError: fewer than one step.
        """
        steps = self.steps if steps is None else steps
        if steps < 1:
            raise UserError(f"{steps} must be at least 1", field="steps")
        first = self.sigma_first if first is None else first
        last = min(self.sigma_last, first / 2)  # an edit that begins low goes lower
        return karras_sigmas(steps, last, first, rho, dtype=torch.float64).tolist()


def given_levels(
    info: ModelInfo, timesteps: Sequence[int] | None = None, sigmas: Sequence[float] | None = None
) -> list[float] | None:
    """Returns the noise levels that `timesteps` or `sigmas` mean for a model; None where neither is given.

    Args:
        info: noise range and grid of the model.
        timesteps: indices of the grid, rising; the first need not be 0.
        sigmas: noise levels, descending, above sigma_min and up to sigma_max.

    Raises:
        UserError: the levels do not descend, or lie outside of the model's range.
    """
    if timesteps is not None:
        count, listed = info.num_train_timesteps, ", ".join(map(str, timesteps))
        if not timesteps or any(a >= b for a, b in pairwise(timesteps)):
            raise UserError(f"[{listed}] must rise: they count from sigma_max down to sigma_min", field="timesteps")
        if timesteps[0] < 0 or timesteps[-1] > count - 2:
            levels = f"0 and {count - 2}, the levels above sigma_min"
            raise UserError(f"[{listed}] must lie between {levels}", field="timesteps")
        indices = torch.tensor(list(timesteps), dtype=torch.float64)
        return karras_sigma(indices, count, info.sigma_min, info.sigma_max, info.rho).tolist()
    if sigmas is not None:
        listed = ", ".join(f"{s:g}" for s in sigmas)
        if not sigmas or any(not a > b for a, b in pairwise(sigmas)):
            raise UserError(f"[{listed}] must descend strictly, and there must be one", field="sigmas")
        if not (sigmas[-1] > info.sigma_min and sigmas[0] <= info.sigma_max * (1 + 1e-4)):
            limits = f"above {info.sigma_min:g} and up to {info.sigma_max:g}"
            raise UserError(f"[{listed}] must lie {limits}", field="sigmas")
        return [float(s) for s in sigmas]
    return None


def check_first_level(sigma: float | None, strength: float | None, levels: Sequence[float] | None) -> None:
    """Refuses more than one way to give the level at which an edit begins.

    Args:
        sigma: first noise level; None if it is not given.
        strength: first noise level as a share of the model's noise grid; None if it is not given.
        levels: all noise levels; None if they are not given.

    Raises:
        UserError: two or more are given.
    """
    check_one_of(sigma=sigma, strength=strength)
    if levels is not None and (sigma is not None or strength is not None):
        raise UserError("`timesteps` or `sigmas` give the first level, and so does `sigma` or `strength`", "give one")


def first_level(info: ModelInfo, sigma: float | None = None, strength: float | None = None) -> float | None:
    """Returns the noise level at which an edit begins; None where neither is given.

    Args:
        info: noise range and grid of the model.
        sigma: first noise level; None if it is not given.
        strength: first noise level as a share of the model's noise grid, from 0 (sigma_min) to 1 (sigma_max), in place
            of `sigma`.

    Raises:
        UserError: the level is outside of the model's range.
    """
    first = sigma if strength is None else sigma_of_strength(strength, info.sigma_min, info.sigma_max, info.rho)
    if first is not None and not info.sigma_min < first <= info.sigma_max:
        name, value = ("sigma", first) if strength is None else ("strength", strength)
        limits = f"the model's noise of {info.sigma_min:g} and up to {info.sigma_max:g}"
        raise UserError(f"{value:g} must lie above {limits}", field=name)
    return first


def levels_below(
    sigma: Float[Tensor, " B"], steps: int, sigma_min: float = 0.002, rho: float = 7.0
) -> Float[Tensor, "steps B"]:
    """Returns noise levels for every image, descending from its `sigma` towards sigma_min.

    Args:
        sigma: first level of each image; one below sigma_min stays as it is.
        steps: number of levels.
        sigma_min: level at which the model's trajectories end.
        rho: exponent of the grid.

    Raises:
        UserError: less than one step.
    """
    if steps < 1:
        raise UserError(f"{steps} must be at least 1", field="steps")
    done = torch.arange(steps, device=sigma.device, dtype=sigma.dtype)[:, None] / steps
    high, low = sigma ** (1 / rho), torch.full_like(sigma, sigma_min) ** (1 / rho)
    levels = (high + done * (low - high).clamp_max(0)) ** rho
    return torch.cat([sigma[None], levels[1:]])  # the first to the last bit


def sigma_of_strength(strength: float, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> float:
    """Returns the noise level at which an edit of this strength begins.

    Raises:
        UserError: the strength is not in 0 .. 1.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"{strength} must lie between 0, which changes nothing, and 1", field="strength")
    if strength in (0, 1):
        return float((sigma_min, sigma_max)[int(strength)])
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (low + strength * (high - low)) ** rho


def strength_of_sigma(sigma: float, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> float:
    """Returns the strength of an edit that begins at a noise level: the inverse of `sigma_of_strength`.

    Raises:
        UserError: the level is not between sigma_min and sigma_max.
    """
    if not sigma_min <= sigma <= sigma_max:
        raise UserError(f"noise level {sigma:g} must lie between sigma_min {sigma_min:g} and sigma_max {sigma_max:g}")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (sigma ** (1 / rho) - low) / (high - low)
