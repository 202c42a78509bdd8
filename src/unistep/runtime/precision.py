"""The precision that a network computes in.

The published models run their residual and attention blocks in half precision and keep the time embedding and the
output head in fp32 (`cast_blocks` of every network). Noise, scalings and images are fp32 in all precisions, so that a
lower one changes an image by rounding and by nothing else.
"""

from typing import Protocol, cast

import torch
from torch import nn

from unistep.errors import UserError

_NAMES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}


class Castable(Protocol):
    """A network whose blocks can be cast, as all of this package can."""

    def cast_blocks(self, dtype: torch.dtype) -> object:
        """Casts all but the embeddings and the output head, in place."""
        ...


def resolve_dtype(dtype: str | torch.dtype, device: torch.device | str = "cpu") -> tuple[torch.dtype, str]:
    """Returns the precision that a name means, and the reason in words.

    Args:
        dtype: fp32, fp16, bf16, or "auto": the fastest that keeps the images the same to the eye.
        device: device of the network.

    Raises:
        UserError: no such precision.
    """
    if isinstance(dtype, torch.dtype):
        if dtype not in _NAMES.values():
            raise UserError(f"dtype {dtype} is not one that networks compute in; give float32, float16 or bfloat16")
        return dtype, "as asked"
    if dtype != "auto":
        if dtype not in _NAMES:
            raise UserError(f"dtype {dtype!r} is unknown; give auto, fp32, fp16 or bf16")
        return _NAMES[dtype], "as asked"
    kind = torch.device(device).type
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "bf16: this GPU has matrix units for it"
        return torch.float16, "fp16: this GPU has no bf16"
    if kind == "mps":
        return torch.float16, "fp16: Apple's GPU"
    if kind == "cpu":
        unit = bf16_unit()
        return (torch.bfloat16, f"bf16: this processor has {unit}") if unit else (torch.float32, "fp32: no bf16 units")
    return torch.float32, f"fp32: nothing is known of {kind}"


def bf16_unit() -> str | None:
    """The unit of this processor that multiplies bf16 matrices; None where bf16 would be emulated, and slow."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512 bf16" if torch.cpu._is_avx512_bf16_supported() else None


def set_precision(network: nn.Module, dtype: torch.dtype) -> None:
    """Casts a network in place: embeddings and output head to fp32, the rest to `dtype`; picks the memory format.

    In half precision channels last is the faster format, by 4 to 7% for small images. In fp32 it gains nothing that
    would be worth a copy of weights that lie in a mapped file.
    """
    network.float()
    if dtype == torch.float32:
        return
    cast(Castable, network).cast_blocks(dtype)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dtype == torch.float32:
            tensor.data = tensor.data.clone()  # or the little that stayed would keep a mapped file in memory
