"""Between pixels and model values: uint8 0 ... 255 and float -1 ... 1."""

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor


def to_float(images: UInt8[Tensor, "..."]) -> Float32[Tensor, "..."]:
    """Pixels 0 ... 255 as fp32 values in [-1, 1]: `x / 127.5 - 1`, as EDM and OpenAI's code have it."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Values in [-1, 1] (others are clamped) as the nearest pixels, rounded as diffusers rounds them.

    The arithmetic is fp32 whatever the input: half precision cannot tell neighbouring pixels near 255 apart.
    """
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
