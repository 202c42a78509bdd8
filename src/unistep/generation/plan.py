"""Sampling plans: the noise levels or the solver of a model."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unistep.checks import check_one_of, check_range
from unistep.core.denoiser import Denoiser
from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.samplers.consistency import check_sigmas, sample_multistep, sigmas_from_indices
from unistep.samplers.guidance import Guided
from unistep.samplers.jumps import sample_jumps
from unistep.samplers.noise_source import NoiseSource
from unistep.samplers.ode import Churn, noise_levels
from unistep.samplers.ode_step import level
from unistep.samplers.table import SOLVERS, find_solver


@dataclass(frozen=True)
class ConsistencyPlan:
    """Noise levels of a consistency sampler, from sigma_max down; nfe = len(sigmas).

    Args:
        sigmas: noise levels.
        sigma_min, sigma_max: lowest and highest noise level of the model.
        clip: whether the outputs of the model are clamped to [-1, 1].

    Raises:
        UserError: they do not descend strictly from sigma_max.
    """

    sigmas: tuple[float, ...]
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    clip: bool = True

    def __post_init__(self) -> None:
        check_sigmas(self.sigmas, self.sigma_max)

    @property
    def nfe(self) -> int:
        """Network evaluations an image."""
        return len(self.sigmas)

    def sample(self, denoiser: Denoiser, noise: Tensor, labels: Tensor | None, random: NoiseSource) -> Tensor:
        """Images in [-1, 1] from unit noise."""
        return sample_multistep(
            denoiser,
            noise,
            self.sigmas,
            labels,
            random=random,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            clip=self.clip,
        )


@dataclass(frozen=True)
class JumpPlan(ConsistencyPlan):
    """Noise levels between which a flow map jumps, from sigma_max down, and from the last to 0; nfe = len(sigmas).

    Args:
        sigmas: noise levels.
        sigma_min, sigma_max: lowest and highest noise level of the model.
        clip: whether the images are clamped to [-1, 1].
        gamma: share of each level between that is fresh noise, in [0, 1].
        guidance: scale of guidance; None is the model's own, or none.

    Raises:
        UserError: they do not descend strictly from sigma_max, or `gamma` is out of range.
    """

    gamma: float = 0.0
    guidance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("gamma", self.gamma, 0.0, 1.0)
        check_range("guidance", self.guidance, 1.0, 1000.0)

    def sample(self, denoiser: Denoiser, noise: Tensor, labels: Tensor | None, random: NoiseSource) -> Tensor:
        """Images in [-1, 1] from unit noise."""
        flow_map: Any = denoiser
        if self.guidance is not None:
            flow_map = functools.partial(flow_map, guidance=level(self.guidance, noise))
        return sample_jumps(
            flow_map,
            noise,
            self.sigmas,
            labels,
            gamma=self.gamma,
            random=random,
            sigma_max=self.sigma_max,
            clip=self.clip,
        )


@dataclass(frozen=True)
class DiffusionPlan:
    """Steps of a solver of `SOLVERS`, for a diffusion model.

    Args:
        solver: name of the solver.
        steps: number of its steps.
        sigma_min, sigma_max, rho: lowest and highest noise level and exponent of the Karras grid.
        clip: whether the outputs of the model and the images are clamped to [-1, 1].
        s_churn: total churn, see `unistep.samplers.ode.Churn`; 0 is none.
        s_min, s_max: noise levels between which churn happens; None is no upper bound.
        s_noise: standard deviation of the noise of the churn.
        guidance: scale of classifier-free guidance; 1 is none.
        null_label: class that stands for none, which guidance needs.

    Raises:
        UserError: there is no such solver, or it has no churn; guidance without a null class, or below 1.
    """

    solver: str = "heun"
    steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    clip: bool = True
    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float | None = None
    s_noise: float = 1.0
    guidance: float = 1.0
    null_label: int | None = None

    def __post_init__(self) -> None:
        check_range("guidance", self.guidance, 1.0, 1000.0)
        if self.guidance != 1 and self.null_label is None:
            raise _no_guidance(self.guidance)
        if self.s_churn and not find_solver(self.solver).churns:
            raise _no_churn("s_churn", self.solver)
        find_solver(self.solver)

    @property
    def nfe(self) -> int:
        """Network evaluations an image; with guidance two in each evaluation of the solver."""
        return find_solver(self.solver).evaluations(self.steps) * (1 if self.guidance == 1 else 2)

    def sample(self, denoiser: Denoiser, noise: Tensor, labels: Tensor | None, random: NoiseSource) -> Tensor:
        """Images in [-1, 1] from unit noise."""
        solver = find_solver(self.solver)
        more: dict[str, Any] = {"noise": random} if solver.stochastic else {}
        if self.s_churn:
            s_max = math.inf if self.s_max is None else self.s_max
            more["churn"] = Churn(random, self.s_churn, self.s_min, s_max, self.s_noise)
        if self.guidance != 1 and self.null_label is not None:
            denoiser = Guided(denoiser, self.guidance, self.null_label)
        return solver.function()(
            denoiser,
            noise,
            self.steps,
            labels,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            rho=self.rho,
            clip=self.clip,
            **more,
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
    timesteps: Sequence[int], num_timesteps: int, sigma_min: float, sigma_max: float, rho: float, clip: bool = True
) -> ConsistencyPlan:
    """The plan of grid indices; index 0 is sigma_max."""
    sigmas = sigmas_from_indices(timesteps, num_timesteps, sigma_min, sigma_max, rho)
    return ConsistencyPlan(tuple(sigmas), sigma_min, sigma_max, clip)


def default_plan(info: ModelInfo, steps: int | None = None) -> Plan:
    """Returns the plan of a model where only a number of steps is given, or nothing.

    A consistency model takes 1 step (a flow map one jump), or the model's own schedule where it has one of `steps`
    steps, or levels spaced evenly over its grid. A diffusion model takes `steps` steps of its solver, or the number
    that it was distilled for, or 18.

    Args:
        info: noise range, grid and kind of the model.
        steps: network evaluations of a consistency model, solver steps of a diffusion model.

    Raises:
        UserError: more steps than the grid has levels.
    """
    if info.kind == "diffusion":
        steps = steps or info.steps or 18
        return DiffusionPlan(info.solver, steps, info.sigma_min, info.sigma_max, info.rho, info.clip)
    steps = steps or 1
    return _of_indices(info, info.schedule(steps) or spaced_timesteps(steps, info.num_train_timesteps))


def make_plan(
    info: ModelInfo,
    *,
    steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    solver: str | None = None,
    clip: bool | None = None,
    rho: float | None = None,
    s_churn: float | None = None,
    s_min: float | None = None,
    s_max: float | None = None,
    s_noise: float | None = None,
    gamma: float | None = None,
    guidance: float | None = None,
) -> Plan:
    """Returns the plan that a user's choice means for a model.

    Args:
        info: noise range, grid and kind of the model.
        steps: network evaluations of a consistency model, solver steps of a diffusion model.
        timesteps: indices of a consistency model's noise grid, from 0 (sigma_max) up.
        sigmas: noise levels of a consistency model, from sigma_max down.
        solver: ODE solver of a diffusion model.
        clip: whether the outputs of the model are clamped to [-1, 1]; None is the model's own way.
        rho: exponent of a diffusion model's noise grid; None is the model's.
        s_churn, s_min, s_max, s_noise: churn of a diffusion model's solver, see `DiffusionPlan`.
        gamma: share of fresh noise between the jumps of a flow map; None is the model's own.
        guidance: scale of guidance of a flow map that has an input for it, or of a diffusion model that has a null
            class; None is the model's own, or none.

    Raises:
        UserError: more than one of `steps`, `timesteps`, `sigmas`; one that is not for this kind of model or this
            solver; numbers out of range, or that are no schedule.
    """
    check_range("steps", steps, 1, 10_000)
    check_one_of(steps=steps, timesteps=timesteps, sigmas=sigmas)
    for name, value, least, most in (
        ("rho", rho, 0.1, 1000.0),
        ("s_churn", s_churn, 0.0, 1e6),
        ("s_min", s_min, 0.0, 1e6),
        ("s_max", s_max, 0.0, math.inf),
        ("s_noise", s_noise, 0.0, 10.0),
    ):
        check_range(name, value, least, most)
    churn = {"s_churn": s_churn, "s_min": s_min, "s_max": s_max, "s_noise": s_noise}
    of_solver = {"solver": solver, "rho": rho, **churn}
    given = {name: value for name, value in of_solver.items() if value is not None}
    if gamma is not None and not info.flow_map:
        raise UserError(f"`gamma` {gamma:g} is for flow maps; this is another model", "leave it out")
    of_guidance = info.null_label if info.kind == "diffusion" else info.guidance_scale if info.flow_map else None
    if guidance is not None and of_guidance is None:
        raise _no_guidance(guidance)
    if info.kind == "diffusion":
        if timesteps is not None or sigmas is not None:
            raise UserError("`timesteps` and `sigmas` are for consistency models", "for a diffusion model give `steps`")
        plan = default_plan(info, steps)
        assert isinstance(plan, DiffusionPlan)
        _check_churn(solver or plan.solver, churn)
        if guidance is not None:
            given |= {"guidance": guidance, "null_label": info.null_label}
        if s_max == math.inf:  # which JSON does not have
            given["s_max"] = None
        plan = dataclasses.replace(plan, **given, clip=info.clip if clip is None else clip)
        _check_churned(plan)
        if plan.rho != info.rho and _levels(plan) == _levels(dataclasses.replace(plan, rho=info.rho)):
            few = f"{plan.steps} step{'s' * (plan.steps > 1)}"
            raise UserError(f"`rho` {rho:g} has no effect on {few} at the ends of the grid", "leave it out")
        return plan
    for name, value in given.items():
        raise UserError(f"`{name}` {value} is for diffusion models; this is a consistency model", "leave it out")
    if sigmas is not None:
        plan = _of_map(info, ConsistencyPlan(tuple(map(float, sigmas)), info.sigma_min, info.sigma_max, info.clip))
    else:
        plan = default_plan(info, steps) if timesteps is None else _of_indices(info, timesteps)
    of_map = {"gamma": gamma, "guidance": guidance, "clip": clip}
    return dataclasses.replace(plan, **{name: value for name, value in of_map.items() if value is not None})


def _of_indices(info: ModelInfo, timesteps: Sequence[int]) -> ConsistencyPlan:
    grid = (info.num_train_timesteps, info.sigma_min, info.sigma_max, info.rho)
    return _of_map(info, consistency_plan(timesteps, *grid, info.clip))


def _of_map(info: ModelInfo, plan: ConsistencyPlan) -> ConsistencyPlan:
    """The plan of jumps, if the model is a flow map; otherwise the plan as it is."""
    if not info.flow_map:
        return plan
    return JumpPlan(plan.sigmas, plan.sigma_min, plan.sigma_max, plan.clip, gamma=info.gamma)


def _no_guidance(scale: float) -> UserError:
    return UserError(
        f"`guidance` {scale:g} is for flow maps with an input for it, and for diffusion models with a null class, "
        f"trained with label dropout; this model has neither",
        "leave it out",
    )


def _no_churn(name: str, solver: str) -> UserError:
    churned = " and ".join(row.name for row in SOLVERS.values() if row.churns)
    return UserError(f"`{name}` is for the solvers {churned}, which add noise before a step, not for {solver}")


def _check_churn(solver: str, churn: dict[str, float | None]) -> None:
    """Refuses numbers of the churn that would have no effect."""
    given = [name for name, value in churn.items() if value is not None]
    if given and not find_solver(solver).churns:
        raise _no_churn(given[0], solver)
    if given and not churn["s_churn"]:
        for name in given:
            if name != "s_churn":
                raise UserError(f"`{name}` has no effect without churn", "give `s_churn` above 0, or leave it out")


def _levels(plan: DiffusionPlan) -> list[float]:
    """Noise levels that the steps begin at."""
    to_zero = plan.solver != "progressive"
    return noise_levels(plan.steps, plan.sigma_min, plan.sigma_max, plan.rho, to_zero=to_zero)[:-1]


def _check_churned(plan: DiffusionPlan) -> None:
    """Refuses churn between levels where there is none."""
    if not plan.s_churn:
        return
    most = math.inf if plan.s_max is None else plan.s_max
    if plan.s_min > most:
        raise UserError(f"`s_min` {plan.s_min:g} is above `s_max` {most:g}: no step would churn", "give a lower one")
    levels = _levels(plan)
    if not any(plan.s_min <= level <= most for level in levels):
        raise UserError(
            f"no noise level of the {plan.steps} steps lies between `s_min` {plan.s_min:g} and `s_max` {most:g}, so "
            f"that no step would churn; they go from {levels[0]:g} to {levels[-1]:g}"
        )
