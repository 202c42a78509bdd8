"""What the images of a run depend on, so that a run is only ever resumed by its own command."""

import dataclasses
import hashlib
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from unistep.formats.model import ModelInfo
from unistep.generation.plan import Plan


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
    """The settings by name, as JSON takes them. Batch size, device and number of processes are not among them.

    Args:
        weights: `weights_digest` of the model in fp32.
        info, plan, shape, num_images, labels, seed: of the run.
        dtype: the precision that the network computes in.
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
        "model's noise range and scaling": dataclasses.asdict(info),
        "unistep": version("unistep"),
    }


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all tensors of a module: names, types, shapes and values, wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
