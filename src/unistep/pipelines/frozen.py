"""Read-only settings, to be had as entries and as attributes: diffusers' `config`."""

import json
from typing import Any, NoReturn

import numpy as np

from unistep.core.parameterization import NoiseEmbedding
from unistep.errors import UserError
from unistep.pipelines.numbers import check_number, whole_number

_MOST_LEVELS = 1_000_000


class FrozenConfig(dict[str, Any]):
    """Settings by name, `config["sigma_min"]` or `config.sigma_min`, which nothing changes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no {name!r}; it has {', '.join(self)}") from None

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise UserError("a `config` is read-only; make another object of `from_config(config, name=value)`")

    __setattr__ = __setitem__ = __delattr__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def to_json_string(self) -> str:
        """Returns the entries as indented JSON, sorted by name."""
        return json.dumps(self, indent=2, sort_keys=True) + "\n"


class SchedulerConfig(FrozenConfig):
    """Noise range and grid of a scheduler, the entries of diffusers' class; see `CMStochasticIterativeScheduler`.

    There is an entry `noise_embedding` only where it is not "adm": diffusers' class, which has no other, takes the rest
    as they are.
    """

    num_train_timesteps: int
    sigma_min: float
    sigma_max: float
    sigma_data: float
    s_noise: float
    rho: float
    clip_denoised: bool

    @property
    def noise_embedding(self) -> NoiseEmbedding:
        """Form of the noise level at the network's input."""
        return self.get("noise_embedding", "adm")


def scheduler_config(
    num_train_timesteps: Any = 40,
    sigma_min: Any = 0.002,
    sigma_max: Any = 80.0,
    sigma_data: Any = 0.5,
    s_noise: Any = 1.0,
    rho: Any = 7.0,
    clip_denoised: Any = True,
    noise_embedding: Any = "adm",
) -> SchedulerConfig:
    """Returns the settings of a scheduler; the arguments are those of `CMStochasticIterativeScheduler`.

    Raises:
        UserError: a value of another type, or out of range.
    """
    levels = whole_number("num_train_timesteps", num_train_timesteps)
    if levels > _MOST_LEVELS:
        raise UserError(f"`num_train_timesteps` is {levels}; it must be at most {_MOST_LEVELS}")
    numbers = {"sigma_min": sigma_min, "sigma_max": sigma_max, "sigma_data": sigma_data, "s_noise": s_noise, "rho": rho}
    for name, value in numbers.items():
        check_number(name, value)
        if value < 0 or (value == 0 and name not in ("sigma_min", "s_noise")):
            raise UserError(f"`{name}` is {value!r}; it must be positive")
    if sigma_min >= sigma_max:
        raise UserError(f"`sigma_min` {sigma_min:g} must be below `sigma_max` {sigma_max:g}")
    if not isinstance(clip_denoised, bool | np.bool_):
        raise UserError(f"`clip_denoised` is {clip_denoised!r}; it must be True or False")
    if noise_embedding not in ("adm", "edm"):
        raise UserError(f"`noise_embedding` is {noise_embedding!r}; it must be adm or edm")
    return SchedulerConfig(
        num_train_timesteps=levels,
        **{name: float(value) for name, value in numbers.items()},
        clip_denoised=bool(clip_denoised),
        **({} if noise_embedding == "adm" else {"noise_embedding": noise_embedding}),
    )
