"""The multistep sampler of consistency models, one call a step: diffusers' `CMStochasticIterativeScheduler`.

Algorithm 1 of "Consistency Models" (Song et al. 2023): f(x, sigma) gives an image, noise brings it to the next level,

    x_next = f(x, sigma) + sqrt(max(sigma_next^2 - sigma_min^2, 0)) s_noise z.

Interface and meanings are those of diffusers 0.42: `timesteps` given by the user descend and count on a grid of
`num_train_timesteps` levels whose index 0 is sigma_max, so that [22, 0] means the levels 0 and then 22; the attribute
`timesteps` holds the noise embedding of each level, 250 ln(sigma). Beyond it: `sigmas` gives noise levels directly, and
schedules that cannot work are refused: one that does not begin at sigma_max, where the noise is.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from unistep.core.noise import karras_sigma
from unistep.core.parameterization import ConsistencyScaling, NoiseEmbedding, c_noise_of
from unistep.errors import UserError
from unistep.samplers.consistency import check_sigmas

Generator = torch.Generator | Sequence[torch.Generator] | None
_STATE = ("timesteps", "sigmas", "num_inference_steps", "_step_index", "_begin_index")


@dataclass(frozen=True)
class SchedulerConfig:
    """Noise range and grid; see `CMStochasticIterativeScheduler`."""

    num_train_timesteps: int = 40
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    s_noise: float = 1.0
    rho: float = 7.0
    clip_denoised: bool = True
    noise_embedding: NoiseEmbedding = "adm"


class SchedulerOutput(NamedTuple):
    """Result of a step.

    Args:
        prev_sample: images [B, C, H, W], noised to the next level.
    """

    prev_sample: Tensor


class CMStochasticIterativeScheduler:
    """Noise levels and steps of a consistency sampler.

    Args:
        num_train_timesteps: number of levels of the grid.
        sigma_min, sigma_max, rho: lowest and highest noise level and exponent of the Karras grid.
        sigma_data: standard deviation of the images.
        s_noise: factor of the noise of every step but the first.
        clip_denoised: whether every image is clamped to [-1, 1].
        noise_embedding: c_noise of the network: "adm" 250 ln(sigma), as in the published models, "edm" ln(sigma)/4.

    Attributes:
        timesteps: c_noise of each step, fp64.
        sigmas: noise level of each step, and sigma_min; fp32, on the CPU.
        init_noise_sigma: factor of the unit noise at the start.
    """

    order = 1

    def __init__(
        self,
        num_train_timesteps: int = 40,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        s_noise: float = 1.0,
        rho: float = 7.0,
        clip_denoised: bool = True,
        noise_embedding: NoiseEmbedding = "adm",
    ) -> None:
        self.config = c = SchedulerConfig(
            num_train_timesteps, sigma_min, sigma_max, sigma_data, s_noise, rho, clip_denoised, noise_embedding
        )
        self.init_noise_sigma = sigma_max
        self.num_inference_steps: int | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._set_sigmas(self._grid(torch.arange(c.num_train_timesteps, dtype=torch.float64)), None)

    @classmethod
    def from_config(
        cls, config: "SchedulerConfig | dict[str, Any]", **changes: Any
    ) -> "CMStochasticIterativeScheduler":
        """Makes a scheduler of another's `config`, or of a scheduler_config.json; unknown entries are left out."""
        given = asdict(config) if isinstance(config, SchedulerConfig) else dict(config)
        return cls(**{k: v for k, v in (given | changes).items() if k in SchedulerConfig.__dataclass_fields__})

    def fork(self) -> "CMStochasticIterativeScheduler":
        """Returns a scheduler of the same settings with schedule and step of its own, as a call of one thread needs."""
        # Neither holds tensors that are changed in place.
        return copy.copy(self)

    def adopt(self, other: "CMStochasticIterativeScheduler") -> None:
        """Takes schedule and step from another scheduler of the same settings."""
        vars(self).update({name: vars(other)[name] for name in _STATE})

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def step_index(self) -> int | None:
        """Number of the next step; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Number of the first step; None unless `set_begin_index` was called."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begins in the middle of a schedule: at step `begin_index`."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | None = None,
        *,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Chooses the noise levels, by exactly one of the three.

        Args:
            num_inference_steps: number of steps, at indices 0, r, 2r, ... with r = num_train_timesteps //
                num_inference_steps.
            device: device of the attribute `timesteps`.
            timesteps: indices in descending order that end with 0, as [22, 0].
            sigmas: noise levels, strictly descending from sigma_max.

        Raises:
            UserError: none or several are given, or they are no schedule.
        """
        given = [v for v in (num_inference_steps, timesteps, sigmas) if v is not None]
        if not given:
            raise UserError("Exactly one of `num_inference_steps` or `timesteps` must be supplied (or `sigmas`).")
        if len(given) > 1:
            raise UserError("Can only pass one of `num_inference_steps`, `timesteps` or `sigmas`.")
        if sigmas is not None:
            levels = [float(s) for s in sigmas]
            check_sigmas(levels, self.config.sigma_max)
            self._set_sigmas(torch.tensor(levels, dtype=torch.float64), device)
            return
        indices = self._spaced(num_inference_steps) if num_inference_steps is not None else self._checked(timesteps)
        self.num_inference_steps = num_inference_steps
        self._set_sigmas(self._grid(torch.tensor(indices, dtype=torch.float64)), device)

    def sigma_to_t(self, sigmas: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Returns c_noise of noise levels."""
        return c_noise_of(sigmas, self.config.noise_embedding)

    def scale_model_input(
        self, sample: Shaped[Tensor, "B ..."], timestep: float | Float[Tensor, ""]
    ) -> Shaped[Tensor, "B ..."]:
        """Returns c_in(sigma) x, the input of the network."""
        sigma = self._sigma(timestep)
        return sample / ((sigma**2 + self.config.sigma_data**2) ** 0.5)

    def step(
        self,
        model_output: Shaped[Tensor, "B ..."],
        timestep: float | Float[Tensor, ""],
        sample: Shaped[Tensor, "B ..."],
        generator: Generator = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Returns the images for the network's output, noised to the next level; the last is sigma_min, without noise.

        Args:
            model_output: output of the network.
            timestep: entry of `timesteps` that the network was called with.
            sample: noisy images x.
            generator: generator of z, for all images or one an image; unused by a schedule of one step.
            return_dict: whether a `SchedulerOutput` is returned; otherwise a tuple.

        Raises:
            UserError: `timestep` is an index instead of an entry of `timesteps`.
        """
        if isinstance(timestep, int) or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
            raise UserError(
                "Passing integer indices as timesteps to step() is not supported. Make sure to pass one of the "
                "`scheduler.timesteps` as a timestep."
            )
        sigma = self._sigma(timestep)
        assert self._step_index is not None
        scaling = ConsistencyScaling(self.config.sigma_min, self.config.sigma_data)
        denoised = scaling.c_out(sigma[None]) * model_output.to(sample.dtype) + scaling.c_skip(sigma[None]) * sample
        if self.config.clip_denoised:
            denoised = denoised.clamp(-1, 1)
        if len(self.timesteps) > 1:
            # The last step draws as well, though it adds nothing: generators stand where diffusers leaves them.
            z = randn(tuple(sample.shape), generator, sample.device).to(sample.dtype) * self.config.s_noise
            following = float(self.sigmas[min(self._step_index + 1, len(self.sigmas) - 1)])
            denoised = denoised + z * math.sqrt(max(following**2 - self.config.sigma_min**2, 0.0))
        self._step_index += 1
        return SchedulerOutput(denoised) if return_dict else (denoised,)

    def add_noise(
        self, original_samples: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."], timesteps: Float[Tensor, " B"]
    ) -> Float[Tensor, "B ..."]:
        """Returns x + sigma noise, at the levels of `timesteps`, entries of the attribute of that name."""
        steps = [self._index_of(t) for t in timesteps]
        sigma = self.sigmas.to(original_samples)[steps]
        return original_samples + noise * sigma.reshape(-1, *(1,) * (original_samples.ndim - 1))

    def _grid(self, indices: Tensor) -> Tensor:
        c = self.config
        if c.num_train_timesteps == 1:
            return torch.full_like(indices, c.sigma_max)
        return karras_sigma(indices, c.num_train_timesteps, c.sigma_min, c.sigma_max, c.rho)

    def _set_sigmas(self, sigmas: Tensor, device: torch.device | str | None) -> None:
        timesteps = self.sigma_to_t(sigmas)
        if device is not None:
            on_mps = torch.device(device).type == "mps"  # which has no fp64
            timesteps = timesteps.to(device, torch.float32 if on_mps else torch.float64)
        self.timesteps = timesteps
        self.sigmas = torch.cat([sigmas, sigmas.new_tensor([self.config.sigma_min])]).float()
        self._step_index = None
        self._begin_index = None

    def _spaced(self, steps: int) -> list[int]:
        levels = self.config.num_train_timesteps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise UserError(f"`num_inference_steps` is {steps!r}; it must be a positive integer.")
        if steps > levels:
            raise UserError(f"`num_inference_steps`: {steps} cannot be larger than `num_train_timesteps`: {levels}.")
        return [i * (levels // steps) for i in range(steps)]

    def _checked(self, timesteps: Sequence[int] | None) -> list[int]:
        listed = list(timesteps or ())
        levels = self.config.num_train_timesteps
        if not listed or any(isinstance(t, bool) or int(t) != t for t in listed):
            raise UserError(f"`timesteps` {listed} must be indices of the noise grid, as [22, 0].")
        if any(a <= b for a, b in pairwise(listed)):
            raise UserError("`timesteps` must be in descending order.")
        if listed[0] >= levels:
            raise UserError(f"`timesteps` must start before `num_train_timesteps`: {levels}.")
        if listed[-1] != 0:
            raise UserError(
                f"`timesteps` {listed} must end with 0, the index of sigma_max {self.config.sigma_max:g}, where the "
                f"noise begins: {[*listed, 0] if listed[-1] > 0 else [t for t in listed if t >= 0]}?"
            )
        return [int(t) for t in reversed(listed)]

    def _sigma(self, timestep: float | Tensor) -> Tensor:
        if self._step_index is None:
            self._step_index = self._begin_index if self._begin_index is not None else self._index_of(timestep)
        return self.sigmas[self._step_index]

    def _index_of(self, timestep: float | Tensor) -> int:
        found = (self.timesteps == timestep).nonzero()
        if not len(found):
            raise UserError(f"timestep {float(timestep):g} is not one of `scheduler.timesteps`.")
        return int(found[0])


def randn(shape: tuple[int, ...], generator: Generator, device: torch.device | str) -> Float[Tensor, "B ..."]:
    """Draws unit Gaussian noise, fp32, on the device of the generator, and moves it to `device`.

    Args:
        shape: shape of the noise, images first.
        generator: generator of all images, or one an image; None is torch's default one of `device`.
        device: device of the result.
    """
    if generator is None or isinstance(generator, torch.Generator):
        place = device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=place).to(device)
    rows = [torch.randn((1, *shape[1:]), generator=g, device=g.device) for g in generator]
    return torch.cat([row.to(device) for row in rows])
