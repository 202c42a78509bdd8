"""Model folders in diffusers' layout, written and read.

    model_index.json                              which classes; `ConsistencyModelPipeline` for consistency models
    unet/config.json                              the architecture, in the fields of diffusers' `UNet2DModel`
    unet/diffusion_pytorch_model.safetensors      the weights
    scheduler/scheduler_config.json               the noise range and grid
    README.md                                     the model card

A folder whose backbone is the plain U-Net opens in diffusers. A diffusion model (a teacher) has the same layout
with diffusers' `EDMEulerScheduler`, whose scalings are EDM's.
"""

import dataclasses
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from unistep.core.parameterization import ConsistencyScaling, EDMScaling, Preconditioned
from unistep.errors import UserError
from unistep.networks.adm import UNet, UNetConfig
from unistep.networks.patched import PatchedUNet, PatchedUNetConfig

Kind = Literal["consistency", "diffusion"]
_SCHEDULERS: dict[Kind, str] = {"consistency": "CMStochasticIterativeScheduler", "diffusion": "EDMEulerScheduler"}
_WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class ModelInfo:
    """What a model folder says beside its weights.

    Args:
        kind: "consistency" maps noise to images in one evaluation; "diffusion" is a teacher.
        sigma_min, sigma_max, rho, sigma_data: the noise range, its grid and the data's standard deviation.
        num_train_timesteps: N of the grid that timestep indices refer to.
        timesteps: indices of a good two-step schedule, index 0 first; None where nobody looked for one.
        null_label: the class that stands for none, of a model trained for classifier-free guidance.
    """

    kind: Kind = "consistency"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    sigma_data: float = 0.5
    num_train_timesteps: int = 40
    timesteps: tuple[int, ...] | None = None
    null_label: int | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to use: `denoiser` is in eval mode and fp32."""

    denoiser: Preconditioned
    info: ModelInfo
    config: UNetConfig
    path: Path

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of an image."""
        size = self.config.sample_size or 64
        return self.config.in_channels, size, size

    @property
    def num_classes(self) -> int:
        """0 for an unconditional model; the null class does not count."""
        return (self.config.num_class_embeds or 0) - (self.info.null_label is not None)


def precondition(network: nn.Module, info: ModelInfo) -> Preconditioned:
    """The network as the denoiser that `info` describes."""
    if info.kind == "consistency":
        return Preconditioned(network, ConsistencyScaling(info.sigma_min, info.sigma_data))
    return Preconditioned(network, EDMScaling(info.sigma_data))


def save_model(
    path: Path,
    network: UNet | PatchedUNet,
    info: ModelInfo,
    *,
    card: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a model folder; an older folder of that name is replaced only when the new one is complete.

    Raises:
        UserError: `path` is a file, or a folder that is not a model's.
    """
    if path.exists() and not (path.is_dir() and ((path / "model_index.json").exists() or not any(path.iterdir()))):
        raise UserError(f"{path} exists and is not a model folder; choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        _write_folder(temporary, network, info, card, dtype)
        if path.exists():
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_folder(folder: Path, network: UNet | PatchedUNet, info: ModelInfo, card: str, dtype: torch.dtype) -> None:
    patched = isinstance(network, PatchedUNet)
    class_name = "PatchedUNet" if patched else "UNet2DModel"
    index = {
        "_class_name": "ConsistencyModelPipeline" if info.kind == "consistency" else "DiffusionPipeline",
        "_diffusers_version": "0.20.0",
        "scheduler": ["diffusers", _SCHEDULERS[info.kind]],
        "unet": ["unistep" if patched else "diffusers", class_name],
    }
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True)
    _write_json(folder / "model_index.json", index)
    config = {"_class_name": class_name, "_diffusers_version": "0.20.0", **dataclasses.asdict(network.config)}
    _write_json(folder / "unet" / "config.json", config)
    state = {name: v.detach().to("cpu", dtype).contiguous() for name, v in network.state_dict().items()}
    save_file(state, folder / "unet" / _WEIGHTS, metadata={"format": "pt"})
    schedule = {"_class_name": _SCHEDULERS[info.kind], **_schedule(info)}
    _write_json(folder / "scheduler" / "scheduler_config.json", schedule)
    (folder / "README.md").write_text(card)


def load_model(path: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Opens a model folder.

    Raises:
        UserError: a file is missing, damaged or of a kind this version does not know.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give a model folder, the one that holds model_index.json")
    _read_json(path / "model_index.json")
    raw = _read_json(path / "unet" / "config.json")
    info = _info(_read_json(path / "scheduler" / "scheduler_config.json"), path)
    kinds: dict[str, tuple[type[UNetConfig], type[UNet] | type[PatchedUNet]]] = {
        "UNet2DModel": (UNetConfig, UNet),
        "PatchedUNet": (PatchedUNetConfig, PatchedUNet),
    }
    class_name = raw.get("_class_name")
    if class_name not in kinds:
        known = ", ".join(kinds)
        raise UserError(f"{path / 'unet' / 'config.json'}: unknown network {class_name!r}; known are {known}")
    config_type, network_type = kinds[class_name]
    config = _config(config_type, raw, path / "unet" / "config.json")
    weights = path / "unet" / _WEIGHTS
    try:
        state = load_file(weights)
    except FileNotFoundError:
        raise UserError(f"{weights} is missing; the model folder is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights} cannot be read ({error}); fetch it again") from None
    with torch.device("meta"):
        network = network_type(config)  # pyright: ignore[reportArgumentType]
    _check_state(state, dict(network.state_dict()), weights)
    network.load_state_dict({name: v.float() for name, v in state.items()}, assign=True)
    denoiser = precondition(network, info).to(device).eval().requires_grad_(False)
    return LoadedModel(denoiser, info, config, path)


def _schedule(info: ModelInfo) -> dict[str, Any]:
    shared = {"sigma_min": info.sigma_min, "sigma_max": info.sigma_max, "sigma_data": info.sigma_data, "rho": info.rho}
    if info.kind == "diffusion":
        return shared | ({} if info.null_label is None else {"null_label": info.null_label})
    schedule = shared | {"num_train_timesteps": info.num_train_timesteps, "s_noise": 1.0, "clip_denoised": True}
    return schedule | ({"timesteps": list(info.timesteps)} if info.timesteps else {})


def _info(schedule: dict[str, Any], path: Path) -> ModelInfo:
    names: dict[Any, Kind] = {scheduler: kind for kind, scheduler in _SCHEDULERS.items()}
    scheduler = schedule.get("_class_name")
    if scheduler not in names:
        raise UserError(f"{path / 'scheduler'}: unknown scheduler {scheduler!r}; known are {', '.join(names)}")
    known = {f.name for f in dataclasses.fields(ModelInfo)} - {"kind", "timesteps"}
    values = {name: schedule[name] for name in known if name in schedule}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise UserError(f"{path / 'scheduler'}: {name} is {value!r}; it must be a number from 0 up")
    timesteps = schedule.get("timesteps")
    return ModelInfo(kind=names[scheduler], timesteps=tuple(timesteps) if timesteps else None, **values)


# Fields of diffusers' `UNet2DModel` that change what the network computes and that this one has in one form only.
_FIXED = {
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
}
# What `UNet2DModel` takes for fields that a config.json leaves out, where our own default differs.
_DIFFUSERS_DEFAULTS = {
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "resnet_time_scale_shift": "default",
}


def _config(config_type: type[UNetConfig], raw: dict[str, Any], path: Path) -> UNetConfig:
    for name, value in _FIXED.items():
        if raw.get(name, value) != value:
            raise UserError(f"{path}: {name} {raw[name]!r} is not supported; only {value!r} is")
    known = {f.name for f in dataclasses.fields(config_type)}
    given = _DIFFUSERS_DEFAULTS | {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k in known}
    values: dict[str, Any] = dict(given)
    try:
        return config_type(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def _check_state(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], path: Path) -> None:
    for name in sorted(expected.keys() ^ state.keys()):
        word = "lacks" if name in expected else "has the unexpected"
        raise UserError(f"{path} {word} tensor {name}; it does not belong to the config.json beside it")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{path}: tensor {name} has shape {list(tensor.shape)}, config.json says {list(expected[name].shape)}"
            )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a model folder holds model_index.json, unet/ and scheduler/") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value
