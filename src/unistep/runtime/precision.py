"""The precision that a network computes in.

The published models run their residual and attention blocks in half precision and keep the time embedding and the
output head in fp32, here their first convolution too (`cast_blocks` of every network). Noise, scalings and images are
fp32 in all precisions, so that a lower one changes an image by rounding and by nothing else.
"""

import functools
import time
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from unistep.errors import UserError

_NAMES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}

SMALL = 10_000_000
"""Number of parameters below which "auto" is fp32 on a CPU: images take milliseconds, and stay the same elsewhere."""

# Least gain of bf16 over fp32 for which "auto" takes it. With units for bf16 it is 1.6 or more, without far below 1.
_GAIN = 1.2


class Castable(Protocol):
    """A network whose blocks can be cast, as all of this package can."""

    def cast_blocks(self, dtype: torch.dtype) -> object:
        """Casts all but the embeddings and the output head, in place."""
        ...


def resolve_dtype(
    dtype: str | torch.dtype, device: torch.device | str = "cpu", parameters: int | None = None
) -> tuple[torch.dtype, str]:
    """Returns the precision that a name means, and the reason in words.

    Args:
        dtype: fp32, fp16, bf16, or "auto": the fastest that keeps the images the same to the eye.
        device: device of the network.
        parameters: number of parameters of the network; None is a large one.

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
    if kind != "cpu":
        return torch.float32, f"fp32: nothing is known of {kind}"
    if parameters is not None and parameters < SMALL:
        return torch.float32, "fp32: a small network, whose images are to be the same on every machine"
    if bf16_is_faster():
        return torch.bfloat16, "bf16: faster than fp32 on this processor"
    return torch.float32, "fp32: bf16 is no faster on this processor"


@functools.cache
def bf16_is_faster() -> bool:
    """Whether a convolution like those of large networks takes less time in bf16 than in fp32; measured in 20 ms."""
    return bf16_gain() >= _GAIN


@torch.no_grad()
def bf16_gain(channels: int = 256, side: int = 16) -> float:
    """Returns the time of a convolution in fp32 divided by that in bf16, on the CPU.

    Args:
        channels: channels of its input and output.
        side: side of its image.
    """

    def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = torch.ones(1, channels, side, side, dtype=dtype)
        weight = torch.ones(channels, channels, 3, 3, dtype=dtype)
        return x.to(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last)

    cases = [operands(dtype) for dtype in (torch.float32, torch.bfloat16)]
    least = [float("inf"), float("inf")]
    for turn in range(24):  # in turns, so that a busy moment meets both
        for i, (x, weight) in enumerate(cases):
            started = time.perf_counter()
            nn.functional.conv2d(x, weight, padding=1)
            # The first turn makes the kernels.
            least[i] = min(least[i], time.perf_counter() - started) if turn else least[i]
        if turn >= 4 and not _GAIN / 2 < least[0] / least[1] < _GAIN * 1.25:
            break
    return least[0] / least[1]


def short_name(dtype: torch.dtype) -> str:
    """Returns fp32, fp16 or bf16."""
    return next(name for name, one in _NAMES.items() if one == dtype)


def size_of(network: nn.Module) -> int:
    """Returns the number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def set_precision(network: nn.Module, dtype: torch.dtype) -> None:
    """Casts a network in place: what `cast_blocks` leaves to fp32, the rest to `dtype`; picks the memory format.

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
