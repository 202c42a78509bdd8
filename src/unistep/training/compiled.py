"""Networks and random numbers compiled by `torch.compile`, and the arithmetic of a run on a GPU.

Compiled are the network of a denoiser, forward and backward, and the draw of normals, whose 150 operations become one
kernel. The scalings around a network stay as they are: few operations, in fp32.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from unistep.core.parameterization import Preconditioned
from unistep.core.random import KERNELS, Kernel
from unistep.networks.adm import UNet
from unistep.networks.layers import Dropout
from unistep.networks.patched import PatchedUNet
from unistep.networks.song import SongUNet


def compiled(model: nn.Module) -> nn.Module:
    """Returns a denoiser of the same weights whose network is compiled; what is no `Preconditioned`, as it is.

    Args:
        model: denoiser. Its own network is left as it is, so that copies and weights keep their names.
    """
    if not isinstance(model, Preconditioned):
        return model
    network: Any = torch.compile(model.network, dynamic=False)
    return Preconditioned(network, model.scaling, flow_map=model.flow_map, guidance=model.guidance)


@functools.cache
def compiled_kernels() -> Mapping[str, Kernel]:
    """Returns the functions that draw an image's numbers, compiled."""
    return {name: torch.compile(kernel, dynamic=False) for name, kernel in KERNELS.items()}


def draws_masks(network: nn.Module) -> bool:
    """Whether a network in training takes numbers from the generator of its call; of others' networks it may be so."""
    if not isinstance(network, UNet | PatchedUNet | SongUNet):
        return True
    hides = getattr(network.config, "label_dropout", 0) > 0
    return hides or any(isinstance(part, Dropout) and part.p > 0 for part in network.modules())


@contextlib.contextmanager
def gpu_arithmetic(device: torch.device, fast: bool) -> Iterator[None]:
    """Sets what a run wants of a GPU's libraries, and sets it back at the end.

    Args:
        device: device of the run; on others than CUDA nothing is set.
        fast: whether products of fp32 matrices may be rounded to TF32, as in runs whose networks compute in bf16.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul.allow_tf32
    before = cudnn.benchmark, cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = fast
        cudnn.benchmark, cudnn.allow_tf32 = True, fast
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        cudnn.benchmark, cudnn.allow_tf32 = before
