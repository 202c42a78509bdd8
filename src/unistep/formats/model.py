"""The result of every reader of a checkpoint: a denoiser with its noise range, grid and kind."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from unistep.core.parameterization import (
    ConsistencyScaling,
    EDMScaling,
    IDDPMScaling,
    NoiseEmbedding,
    Preconditioned,
    Scaling,
    VEScaling,
    VPScaling,
)
from unistep.errors import UserError
from unistep.networks.table import NetworkConfig
from unistep.samplers.consistency import sigmas_from_indices
from unistep.samplers.table import find_solver

Kind = Literal["consistency", "diffusion"]
Preconditioning = Literal["edm", "vp", "ve", "iddpm"]

_OF_FLOW_MAPS = ("flow_map", "guidance_scale", "gamma")


@dataclass(frozen=True)
class ModelInfo:
    """The facts about a model beside its network and weights.

    Args:
        kind: "consistency" maps noise to images in one evaluation; "diffusion" is a teacher.
        sigma_min, sigma_max: lowest and highest noise level.
        rho: exponent of the noise grid.
        sigma_data: standard deviation of the images.
        num_train_timesteps: number of levels of the grid that timestep indices refer to.
        timesteps: indices of a good two-step schedule, index 0 first; None if there is none.
        schedules: good schedules of other numbers of steps, one each.
        null_label: class that stands for none, of a model trained for classifier-free guidance; None if there is none.
        preconditioning: scalings of a diffusion model; a consistency model has those of its own.
        noise_embedding: c_noise of the scalings "edm" and of consistency models: "adm" 250 ln(sigma), "edm"
            ln(sigma)/4; the other scalings define their own.
        method: training method, in words; None if the files do not hold it.
        solver: solver that a diffusion model is sampled with by default.
        steps: number of steps that a diffusion model was distilled for; None is any number.
        beta_d, beta_min: noise schedule of "vp".
        C_1, C_2: noise schedule of "iddpm".
        M: number of times of "vp" and "iddpm".
        clip: whether samplers clamp the outputs of the model to [-1, 1] where nothing else is asked for: OpenAI's do,
            NVIDIA's do not.
        class_names: name of each class, in the order of their numbers; empty if they have none.
        flow_map: whether a consistency model also maps to the levels between; its network has an input for the end.
        guidance_scale: scale of guidance that a model is sampled with by default whose network has an input for it;
            None for the others.
        gamma: share of fresh noise between the jumps of a flow map that is sampled in several steps: 0 is none, 1 all,
            as of a consistency model.

    Raises:
        UserError: numbers out of range, timesteps that are no schedule, or two schedules of one number of steps.
    """

    kind: Kind = "consistency"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5
    num_train_timesteps: int = 40
    timesteps: tuple[int, ...] | None = None
    schedules: tuple[tuple[int, ...], ...] = ()
    null_label: int | None = None
    preconditioning: Preconditioning = "edm"
    noise_embedding: NoiseEmbedding = "adm"
    method: str | None = None
    solver: str = "heun"
    steps: int | None = None
    beta_d: float = 19.9
    beta_min: float = 0.1
    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000
    clip: bool = True
    class_names: tuple[str, ...] = ()
    flow_map: bool = False
    guidance_scale: float | None = None
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < self.sigma_max < float("inf"):
            raise UserError(f"sigma_min {self.sigma_min} and sigma_max {self.sigma_max} must satisfy 0 <= min < max")
        for name in ("rho", "sigma_data", "beta_d", "beta_min", "C_1"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} {getattr(self, name)} must be positive")
        if not 1 <= self.num_train_timesteps <= 1_000_000:
            raise UserError(f"num_train_timesteps {self.num_train_timesteps} must lie between 1 and 1000000")
        if not 0 <= self.C_2 <= 1 or self.C_1 >= 1:
            raise UserError(f"C_1 {self.C_1} and C_2 {self.C_2} must lie between 0 and 1")
        if not 2 <= self.M <= 100_000:
            raise UserError(f"M {self.M} must lie between 2 and 100000")
        find_solver(self.solver)
        if self.steps is not None and not 1 <= self.steps <= 1_000_000:
            raise UserError(f"steps {self.steps} must lie between 1 and 1000000")
        if self.null_label is not None and self.null_label < 0:
            raise UserError(f"null_label {self.null_label} must not be negative")
        if self.flow_map and (self.kind != "consistency" or self.sigma_min != 0):
            raise UserError(f"flow_map is for consistency models with sigma_min 0, not {self.kind} {self.sigma_min:g}")
        if self.guidance_scale is not None and not 1 <= self.guidance_scale < float("inf"):
            raise UserError(f"guidance_scale {self.guidance_scale} must be at least 1")
        if not 0 <= self.gamma <= 1:
            raise UserError(f"gamma {self.gamma} is outside [0, 1]")
        counts = set()
        for own in self.all_schedules:
            sigmas_from_indices(own, self.num_train_timesteps)  # refuses what is no schedule
            if len(own) in counts:
                raise UserError(f"schedules: there are two of {len(own)} steps; keep one")
            counts.add(len(own))

    def settings(self) -> dict[str, Any]:
        """Returns all that the images of a model depend on, by name: names of classes aside."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name != "class_names"}
        # As they were before there were flow maps, so that what is remembered of other models stays theirs.
        return {name: value for name, value in values.items() if name not in _OF_FLOW_MAPS or value}

    @property
    def all_schedules(self) -> tuple[tuple[int, ...], ...]:
        """`timesteps`, if there are any, and `schedules`."""
        return self.schedules if self.timesteps is None else (self.timesteps, *self.schedules)

    def schedule(self, steps: int) -> tuple[int, ...] | None:
        """Returns the indices of a good schedule of `steps` steps; None if there is none."""
        return next((own for own in self.all_schedules if len(own) == steps), None)

    def with_schedule(self, timesteps: Sequence[int]) -> "ModelInfo":
        """Returns the same with another schedule of so many steps; those of other numbers of steps stay.

        Args:
            timesteps: indices of the schedule, index 0 first.

        Raises:
            UserError: `timesteps` are no schedule.
        """
        new, own = tuple(timesteps), self.timesteps
        if len(new) == (2 if own is None else len(own)):
            return dataclasses.replace(self, timesteps=new, schedules=_others(self.schedules, new))
        return dataclasses.replace(self, schedules=tuple(sorted([*_others(self.schedules, new), new], key=len)))


def _others(schedules: tuple[tuple[int, ...], ...], new: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(own for own in schedules if len(own) != len(new))


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model ready to use: `denoiser` is in eval mode and fp32.

    Args:
        denoiser: network with its scalings.
        info: noise range, grid and kind.
        config: config of the network.
        path: file or folder that it was read from.
        format: title of the format.
        dtype: dtype of most weights in the file.
        notes: assumptions about facts that the file does not hold, a line each.
    """

    denoiser: Preconditioned
    info: ModelInfo
    config: NetworkConfig
    path: Path
    format: str = "model folder"
    dtype: torch.dtype = torch.float32
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        channels, height, width = self.image_shape
        colour = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return (
            f"LoadedModel({self.info.kind} model of {width}x{height} {colour} images{classes}, path={str(self.path)!r})"
        )

    @property
    def method(self) -> str | None:
        """Training method, in words; None if the file does not hold it."""
        return self.info.method

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return image_shape(self.config)

    @property
    def num_classes(self) -> int:
        """Number of classes without the null class; 0 for an unconditional model."""
        return num_classes(self.config, self.info)


def check_class_names(config: NetworkConfig, info: ModelInfo) -> None:
    """Refuses another number of names than of classes.

    Raises:
        UserError: the numbers differ.
    """
    names, classes = len(info.class_names), num_classes(config, info)
    if names not in (0, classes):
        raise UserError(f"class_names are {names}, and the network has {classes} classes; correct or remove them")


def image_shape(config: NetworkConfig) -> tuple[int, int, int]:
    """Returns channels, height, width of the images of a network; 64 pixels if its config has no size."""
    size = config.sample_size or 64
    return config.in_channels, size, size


def num_classes(config: NetworkConfig, info: ModelInfo) -> int:
    """Returns the number of classes of a model without the null class; 0 for an unconditional model."""
    return (config.num_class_embeds or 0) - (info.null_label is not None)


def scaling_of(info: ModelInfo) -> Scaling:
    """Returns the scalings of a model.

    Args:
        info: kind and preconditioning of the model.

    Raises:
        UserError: an unknown preconditioning.
    """
    if info.kind == "consistency" and info.sigma_min > 0:  # at 0 its scalings are EDM's
        return ConsistencyScaling(info.sigma_min, info.sigma_data, info.noise_embedding)
    if info.kind == "consistency" or info.preconditioning == "edm":
        return EDMScaling(info.sigma_data, info.noise_embedding)
    if info.preconditioning == "vp":
        return VPScaling(info.beta_d, info.beta_min, info.M)
    if info.preconditioning == "ve":
        return VEScaling()
    if info.preconditioning == "iddpm":
        return IDDPMScaling(info.C_1, info.C_2, info.M)
    raise UserError(f"preconditioning {info.preconditioning} is not known; edm, vp, ve and iddpm are")


def precondition(network: nn.Module, info: ModelInfo) -> Preconditioned:
    """The network as the denoiser that `info` describes."""
    return Preconditioned(network, scaling_of(info), flow_map=info.flow_map, guidance=info.guidance_scale)
