"""Pixels, uint8 0 ... 255, and values of models, float -1 ... 1; and how far images of pixels are from each other."""

import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

from unistep.core.finite import check_finite


def to_float(images: UInt8[Tensor, "..."]) -> Float32[Tensor, "..."]:
    """Pixels 0 ... 255 as fp32 values in [-1, 1]: `x / 127.5 - 1`, as EDM and OpenAI's code have it."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Values in [-1, 1] (others are clamped) as the nearest pixels, rounded as diffusers rounds them.

    The arithmetic is fp32 for any input: half precision does not resolve neighbouring pixels near 255.

    Raises:
        NotFiniteError: a value is NaN or infinite; it would become black, or white.
    """
    check_finite(images, source="the sampler")
    return nearest_pixels(images)


def nearest_pixels(images: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Returns what `to_uint8` does, without a look at the values."""
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


_LEAST_ERROR = 1e-3  # mean squared error of equal images, 78 dB


def psnr(images: UInt8[Tensor, "N *S"], others: UInt8[Tensor, "N *S"]) -> Float64[Tensor, " N"]:
    """Peak signal-to-noise ratio of every pair of images in dB, 10 log10(255^2 / MSE), at most 78."""
    error = (images.double() - others.double()).flatten(1).square().mean(dim=1).clamp_min(_LEAST_ERROR)
    return 10 * torch.log10(255**2 / error)
