"""The settings that the images of a run depend on: a run is only ever resumed by the same settings."""

import dataclasses
import hashlib
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from unistep.formats.model import ModelInfo
from unistep.generation.plan import Plan
from unistep.text import version_of


def run_settings(
    weights: str,
    info: ModelInfo,
    plan: Plan,
    shape: tuple[int, int, int],
    num_images: int,
    labels: Int64[Tensor, " N"] | None,
    seed: int,
    dtype: str,
) -> dict[str, Any]:
    """Returns the settings by name, as JSON takes them. Batch size, device and number of processes are not among them.

    Args:
        weights: `weights_digest` of the model before it is cast.
        info: noise range and scalings of the model.
        plan: noise levels or solver.
        shape: channels, height, width of an image.
        num_images: number of images.
        labels: class of each image [N]; None for an unconditional model.
        seed: seed of the run.
        dtype: precision that the network computes in.
    """
    return {
        "num_images": num_images,
        "seed": seed,
        "sampler": type(plan).__name__,
        **dataclasses.asdict(plan),
        "dtype": dtype,
        "class labels": None if labels is None else hashlib.sha256(labels.numpy().tobytes()).hexdigest(),
        "shape": shape,
        "model's weights": weights,
        "model's noise range and scaling": info.settings(),
        "unistep": version_of(),
    }


def weights_digest(module: nn.Module) -> str:
    """Returns the SHA-256 of all tensors of a module: names, types, shapes and values, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
