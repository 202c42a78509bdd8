"""What a model is, in JSON's types: for people who look before they load, and for programs that choose."""

import dataclasses
from pathlib import Path
from typing import Any

from unistep.formats.model import LoadedModel
from unistep.networks.table import NetworkConfig


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
        "network": {"type": type(model.denoiser.network).__name__, **_architecture(model.config)},
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


def _architecture(config: NetworkConfig) -> dict[str, Any]:
    outline = getattr(config, "outline", None)  # a network may have none
    return ({} if outline is None else dataclasses.asdict(outline())) | {"config": dataclasses.asdict(config)}


def _bytes_on_disk(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(p.stat().st_size for p in files if p.is_file())
