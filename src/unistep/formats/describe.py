"""What a model is, in JSON's types: for people who look before they load, and for programs that choose."""

import dataclasses
from pathlib import Path
from typing import Any

from unistep.formats.model import LoadedModel
from unistep.networks.adm import UNetConfig
from unistep.networks.song import SongUNetConfig


def describe(model: LoadedModel) -> dict[str, Any]:
    """Format, kind, images, network, noise range and grid of a model; its weights are not used.

    `bytes` is what the file, or all files of the folder, take on disk. `network.resolutions` are the sides of the
    feature maps in pixels, finest first, with their channels; `timesteps` is a good schedule of two steps, or None,
    `schedules` are those of other numbers of steps.
    """
    info = model.info
    channels, size, _ = model.image_shape
    consistency = info.kind == "consistency"
    return {
        "path": str(model.path),
        "format": model.format,
        "bytes": _bytes_on_disk(model.path),
        "dtype": str(model.dtype).removeprefix("torch."),
        "kind": info.kind,
        "method": model.method,
        "image": {"size": size, "channels": channels},
        "classes": model.num_classes,
        "null_label": info.null_label,
        "parameters": sum(p.numel() for p in model.denoiser.network.parameters()),
        "network": {"type": type(model.denoiser.network).__name__, **_architecture(model.config, size)},
        "noise": {
            "sigma_min": info.sigma_min,
            "sigma_max": info.sigma_max,
            "sigma_data": info.sigma_data,
            "rho": info.rho,
            "scalings": "consistency" if consistency else info.preconditioning,
            "embedding": info.noise_embedding,
        },
        "num_train_timesteps": info.num_train_timesteps if consistency else None,
        "timesteps": None if info.timesteps is None else list(info.timesteps),
        "schedules": [list(own) for own in info.schedules],
        "notes": list(model.notes),
    }


def _architecture(config: UNetConfig | SongUNetConfig, size: int) -> dict[str, Any]:
    if isinstance(config, SongUNetConfig):
        widths = [config.model_channels * mult for mult in config.channel_mult]
        attends = [size >> i in config.attn_resolutions for i in range(len(widths))]
        known = {
            "patch_size": 1,
            "blocks_per_resolution": config.num_blocks,
            "attention_head_dim": None,
            "middle_attention": True,
            "embedding": f"{config.embedding_type} noise embedding",
        }
    else:
        widths = list(config.block_out_channels)
        attends = [kind.startswith("Attn") for kind in config.down_block_types]
        known = {
            "patch_size": getattr(config, "patch_size", 1),
            "blocks_per_resolution": config.layers_per_block,
            "attention_head_dim": config.attention_head_dim,
            "middle_attention": config.add_attention,
            "embedding": "scale and shift" if config.resnet_time_scale_shift == "scale_shift" else "added",
        }
    sides = [size // known["patch_size"] >> i for i in range(len(widths))]
    return {
        "resolutions": [
            {"size": side, "channels": width, "attention": attending}
            for side, width, attending in zip(sides, widths, attends, strict=True)
        ],
        **known,
        "config": dataclasses.asdict(config),
    }


def _bytes_on_disk(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(p.stat().st_size for p in files if p.is_file())
