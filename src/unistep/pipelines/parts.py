"""The parts of a pipeline: a network and a scheduler."""

from typing import Any

import torch
from torch import nn

from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.formats.model_folder.network import DIFFUSERS_VERSION
from unistep.pipelines.config_files import ConfigFiles
from unistep.pipelines.frozen import FrozenConfig
from unistep.pipelines.options import unknown_argument
from unistep.pipelines.scheduler import CMStochasticIterativeScheduler
from unistep.pipelines.unet import as_unet, class_of, device_of, dtype_of

SHARED = ("sigma_min", "sigma_max", "sigma_data", "rho", "num_train_timesteps", "noise_embedding")
"""Settings that a scheduler and the facts about a model have in common."""

_PARTS = ("unet", "scheduler")


class PipelineParts(ConfigFiles):
    """A network and its scheduler, by the names that diffusers gives them.

    Args:
        unet: network of this package, or diffusers' `UNet2DModel`.
        scheduler: noise levels and steps; diffusers' class is taken over with its settings.
        info: all other settings of the model's files, which are kept when the pipeline is saved; None is the default.
    """

    config_name = "model_index.json"
    model_cpu_offload_seq = "unet"
    hf_device_map: Any = None

    def __init__(self, unet: Any, scheduler: Any, info: ModelInfo | None = None) -> None:
        self.unet = unet
        self.scheduler = scheduler
        self.info = info or ModelInfo()
        self.safety_checker = None
        self.name_or_path: str | None = None

    @property
    def unet(self) -> nn.Module:
        """Network, called as diffusers' is."""
        return self._unet

    @unet.setter
    def unet(self, unet: Any) -> None:
        self._unet = as_unet(unet)

    @property
    def scheduler(self) -> CMStochasticIterativeScheduler:
        """Noise levels and steps."""
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self._scheduler = as_scheduler(scheduler)

    @property
    def components(self) -> dict[str, Any]:
        """Network and scheduler by their names, arguments of another pipeline that shares them."""
        return {name: getattr(self, name) for name in _PARTS}

    @property
    def config(self) -> FrozenConfig:
        """Library and class of every part, and the name under which the pipeline was opened."""
        opened = {} if self.name_or_path is None else {"_name_or_path": self.name_or_path}
        classes = {name: class_of(part) for name, part in self.components.items()}
        return FrozenConfig(classes, _class_name=type(self).__name__, _diffusers_version=DIFFUSERS_VERSION, **opened)

    @property
    def parameters(self) -> dict[str, Any]:
        """Settings of the pipeline beside its parts: none."""
        return {}

    def to_json_string(self) -> str:
        """Returns the content of model_index.json."""
        entries = {name: value for name, value in self.config.items() if name != "_name_or_path"}
        return FrozenConfig(entries).to_json_string()

    def register_modules(self, **parts: Any) -> None:
        """Replaces parts of the pipeline.

        Args:
            parts: `unet`, `scheduler`, or both.

        Raises:
            UserError: a part of another kind.
            TypeError: a name that is no part.
        """
        for name, part in parts.items():
            if name not in _PARTS:
                raise unknown_argument("register_modules", name, _PARTS)
            setattr(self, name, part)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return device_of(self.unet)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network's blocks."""
        return dtype_of(self.unet)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.config.to_json_string()}"


def as_scheduler(scheduler: object) -> CMStochasticIterativeScheduler:
    """Returns a scheduler of this package, made of one of diffusers' where that is given.

    Raises:
        UserError: it is none, or another sampler's.
    """
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        return scheduler
    kind = type(scheduler)
    if kind.__name__ == "CMStochasticIterativeScheduler" and kind.__module__.partition(".")[0] == "diffusers":
        config: Any = getattr(scheduler, "config", {})
        return CMStochasticIterativeScheduler.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    raise UserError(f"a {kind.__name__} does not sample consistency models; give a CMStochasticIterativeScheduler")
