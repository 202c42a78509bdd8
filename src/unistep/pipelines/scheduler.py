"""The multistep sampler of consistency models, one call a step: diffusers' `CMStochasticIterativeScheduler`.

Algorithm 1 of "Consistency Models" (Song et al. 2023): f(x, sigma) gives an image, noise brings it to the next level,

    x_next = f(x, sigma) + sqrt(max(sigma_next^2 - sigma_min^2, 0)) s_noise z.

Interface and meanings are those of diffusers 0.42: `timesteps` given by the user descend and count on a grid of
`num_train_timesteps` levels whose index 0 is sigma_max, so that [22, 0] means the levels 0 and then 22; the attribute
`timesteps` holds the noise embedding of each level, 250 ln(sigma). Beyond it, `sigmas` gives noise levels directly.
A schedule may begin at any level, as an edit of an image does; a pipeline's begins at sigma_max, where the noise is.
"""

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from unistep.core.noise import karras_sigma
from unistep.core.parameterization import ConsistencyScaling, EDMScaling, NoiseEmbedding, c_noise_of
from unistep.errors import UserError
from unistep.pipelines.frozen import scheduler_config
from unistep.pipelines.noise import Generator, randn
from unistep.pipelines.numbers import Numbers, Real, Whole, as_device, as_list, check_number, is_whole, whole_number
from unistep.pipelines.output import SchedulerOutput
from unistep.pipelines.scheduler_files import SchedulerFiles
from unistep.samplers.consistency import check_sigmas

_STATE = (
    "timesteps",
    "sigmas",
    "num_inference_steps",
    "custom_timesteps",
    "is_scale_input_called",
    "_step_index",
    "_begin_index",
)


class CMStochasticIterativeScheduler(SchedulerFiles):
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
        num_train_timesteps: Whole = 40,
        sigma_min: Real = 0.002,
        sigma_max: Real = 80.0,
        sigma_data: Real = 0.5,
        s_noise: Real = 1.0,
        rho: Real = 7.0,
        clip_denoised: bool | np.bool_ = True,
        noise_embedding: NoiseEmbedding = "adm",
    ) -> None:
        self.config = c = scheduler_config(
            num_train_timesteps, sigma_min, sigma_max, sigma_data, s_noise, rho, clip_denoised, noise_embedding
        )
        self.init_noise_sigma = c.sigma_max
        self.num_inference_steps: int | None = None
        self.custom_timesteps = False
        self.is_scale_input_called = False
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._set_sigmas(self._grid(torch.arange(c.num_train_timesteps, dtype=torch.float64)), None)

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

    def set_begin_index(self, begin_index: Whole = 0) -> None:
        """Begins in the middle of a schedule: at step `begin_index`.

        Raises:
            UserError: no whole number, or below 0.
        """
        self._begin_index = whole_number("begin_index", begin_index, least=0)

    def set_timesteps(
        self,
        num_inference_steps: Whole | None = None,
        device: torch.device | str | int | None = None,
        timesteps: Numbers | None = None,
        *,
        sigmas: Numbers | None = None,
    ) -> None:
        """Chooses the noise levels, by exactly one of the three.

        Args:
            num_inference_steps: number of steps, at indices 0, r, 2r, ... with r = num_train_timesteps //
                num_inference_steps.
            device: device of the attribute `timesteps`.
            timesteps: indices in descending order, as [22, 0]; the lowest is the first step.
            sigmas: noise levels, strictly descending.

        Raises:
            UserError: none or several are given, or they are no schedule; no such device.
        """
        given = [v for v in (num_inference_steps, timesteps, sigmas) if v is not None]
        if not given:
            raise UserError("Exactly one of `num_inference_steps` or `timesteps` must be supplied (or `sigmas`).")
        if len(given) > 1:
            raise UserError("Can only pass one of `num_inference_steps`, `timesteps` or `sigmas`.")
        if sigmas is not None:
            levels = torch.tensor(_levels(sigmas), dtype=torch.float64)
        elif timesteps is not None:
            levels = self._grid(torch.tensor(self._indices(timesteps), dtype=torch.float64))
        else:
            levels = self._grid(torch.tensor(self._spaced(num_inference_steps), dtype=torch.float64))
        self._set_sigmas(levels, device)
        self.num_inference_steps = None if num_inference_steps is None else len(levels)
        self.custom_timesteps = timesteps is not None

    def sigma_to_t(self, sigmas: Any) -> Any:
        """Returns c_noise of noise levels: a tensor for a tensor, else numpy's number or array, fp64.

        Args:
            sigmas: noise level, or tensor, array or list of them.
        """
        if isinstance(sigmas, Tensor):
            return c_noise_of(sigmas, self.config.noise_embedding)
        found = c_noise_of(torch.as_tensor(np.asarray(sigmas, dtype=np.float64)), self.config.noise_embedding).numpy()
        return found[()]

    def get_scalings(self, sigma: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
        """Returns c_skip and c_out of a denoiser (EDM's) at noise levels."""
        scaling = EDMScaling(self.config.sigma_data)
        flat = sigma.reshape(-1)
        return scaling.c_skip(flat).reshape(sigma.shape), scaling.c_out(flat).reshape(sigma.shape)

    def get_scalings_for_boundary_condition(self, sigma: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
        """Returns c_skip and c_out of a consistency function at noise levels: 1 and 0 at sigma_min."""
        scaling = ConsistencyScaling(self.config.sigma_min, self.config.sigma_data)
        flat = sigma.reshape(-1)
        return scaling.c_skip(flat).reshape(sigma.shape), scaling.c_out(flat).reshape(sigma.shape)

    def scale_model_input(
        self, sample: Shaped[Tensor, "B ..."], timestep: Real | Shaped[Tensor, "..."]
    ) -> Shaped[Tensor, "B ..."]:
        """Returns c_in(sigma) x, the input of the network."""
        sigma = self._sigma(timestep)
        self.is_scale_input_called = True
        return sample / ((sigma**2 + self.config.sigma_data**2) ** 0.5)

    def step(
        self,
        model_output: Shaped[Tensor, "B ..."],
        timestep: Real | Shaped[Tensor, "..."],
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
        if not timestep.is_floating_point() if isinstance(timestep, Tensor) else is_whole(timestep):
            raise UserError(
                "Passing integer indices as timesteps to step() is not supported. Make sure to pass one of the "
                "`scheduler.timesteps` as a timestep."
            )
        sigma = self._sigma(timestep)
        assert self._step_index is not None
        scaling = ConsistencyScaling(self.config.sigma_min, self.config.sigma_data)
        level = sigma[None].to(sample.device)
        denoised = scaling.c_out(level) * model_output.to(sample.dtype) + scaling.c_skip(level) * sample
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
        self, original_samples: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."], timesteps: Shaped[Tensor, " B"]
    ) -> Float[Tensor, "B ..."]:
        """Returns x + sigma noise.

        Args:
            original_samples: images.
            noise: unit Gaussian noise.
            timesteps: entries of the attribute `timesteps`, one an image. After `set_begin_index`, they are the
                present step whatever they are, as in diffusers.
        """
        if self._begin_index is None:
            steps = [self.index_for_timestep(t) for t in timesteps]
        else:
            steps = [self._begin_index if self._step_index is None else self._step_index] * len(timesteps)
        sigma = self.sigmas.to(original_samples)[steps]
        return original_samples + noise * sigma.reshape(-1, *(1,) * (original_samples.ndim - 1))

    def index_for_timestep(
        self, timestep: Real | Shaped[Tensor, "..."], schedule_timesteps: Shaped[Tensor, " N"] | None = None
    ) -> int:
        """Returns the number of the step of a timestep.

        Args:
            timestep: entry of `timesteps`.
            schedule_timesteps: other timesteps to look in.

        Raises:
            UserError: there is no such entry.
        """
        timesteps = self.timesteps if schedule_timesteps is None else schedule_timesteps
        value = timestep.to(timesteps.device) if isinstance(timestep, Tensor) else float(timestep)
        found = timesteps.eq(value).nonzero()
        if not len(found):
            raise UserError(f"timestep {float(timestep):g} is not one of `scheduler.timesteps`.")
        return int(found[min(1, len(found) - 1)])

    def _grid(self, indices: Tensor) -> Tensor:
        c = self.config
        if c.num_train_timesteps == 1:
            return torch.full_like(indices, c.sigma_max)
        return karras_sigma(indices, c.num_train_timesteps, c.sigma_min, c.sigma_max, c.rho)

    def _set_sigmas(self, sigmas: Tensor, device: torch.device | str | int | None) -> None:
        timesteps = self.sigma_to_t(sigmas)
        if device is not None:
            place = as_device(device)
            timesteps = timesteps.to(place, torch.float32 if place.type == "mps" else torch.float64)  # mps has no fp64
        self.timesteps = timesteps
        self.sigmas = torch.cat([sigmas, sigmas.new_tensor([self.config.sigma_min])]).float()
        self._step_index = None
        self._begin_index = None

    def _spaced(self, steps: Any) -> list[int]:
        levels = self.config.num_train_timesteps
        steps = whole_number("num_inference_steps", steps)
        if steps > levels:
            raise UserError(f"`num_inference_steps`: {steps} cannot be larger than `num_train_timesteps`: {levels}.")
        return [i * (levels // steps) for i in range(steps)]

    def _indices(self, timesteps: Any) -> list[int]:
        """The indices of the grid, in the order in which they are visited."""
        listed = as_list("timesteps", timesteps)
        levels = self.config.num_train_timesteps
        if not listed or not all(is_whole(t) or (isinstance(t, float) and t.is_integer()) for t in listed):
            raise UserError(f"`timesteps` {listed} must be indices of the noise grid, as [22, 0].")
        if any(a <= b for a, b in pairwise(listed)):
            raise UserError("`timesteps` must be in descending order.")
        if listed[0] >= levels:
            raise UserError(f"`timesteps` must start before `num_train_timesteps`: {levels}.")
        if listed[-1] < 0:
            raise UserError(f"`timesteps` {listed} must be indices of the noise grid, which begin with 0.")
        return [int(t) for t in reversed(listed)]

    def _sigma(self, timestep: Any) -> Tensor:
        if self._step_index is None:
            self._step_index = self._begin_index if self._begin_index is not None else self.index_for_timestep(timestep)
        return self.sigmas[self._step_index]


def _levels(sigmas: Any) -> list[float]:
    listed = as_list("sigmas", sigmas)
    if not listed:
        raise UserError("`sigmas` [] must be noise levels, as [80, 0.8].")
    for value in listed:
        if value == value:  # the order refuses the others
            check_number("sigmas", value)
    check_sigmas(listed, listed[0])
    return [float(value) for value in listed]
