"""Layers of `SongUNet`: noise embeddings, resampling by a filter, and the residual block with its attention.

Parameter and buffer names are those of EDM's checkpoints, so that weights need no renaming. Formulas: Karras et al.
2022 (arXiv 2206.00364), appendix C.1 and table 7, after Song et al. 2021 (arXiv 2011.13456).
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unistep.networks import kernels
from unistep.networks.block import Block
from unistep.networks.layers import Dropout, cast_part, silu, zero_init
from unistep.networks.song_config import num_groups

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

SKIP_SCALE = math.sqrt(0.5)
NORM_EPS = 1e-6
# Residual branches start close to zero, not at it: so the published models were trained.
_NEARLY_ZERO = 1e-5


class PositionalEmbedding(nn.Module):
    """`[sin(c w_i), cos(c w_i)]`, `w_i = 10000^(-i / (dim/2 - 1))`; at least fp32, dim even and at least 4."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, c_noise: Float[Tensor, " B"]) -> Float[Tensor, "B dim"]:
        half = self.dim // 2
        exponents = torch.arange(half, dtype=torch.float32, device=c_noise.device) / (half - 1)
        return _waves(c_noise, (1 / 10_000) ** exponents)


def further_embedding(dim: int) -> nn.Sequential:
    """Embedding of a further number in [0, 1] of each image, added to that of the noise; 0 at first."""
    return nn.Sequential(PositionalEmbedding(dim), zero_init(nn.Linear(dim, dim, bias=False)))


class FourierEmbedding(nn.Module):
    """`[sin(2 pi c f_i), cos(2 pi c f_i)]` with random frequencies `f_i`, normal of standard deviation `scale`.

    The frequencies are drawn once and belong to the weights.
    """

    freqs: Tensor

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(dim // 2) * scale)

    def forward(self, c_noise: Float[Tensor, " B"]) -> Float[Tensor, "B dim"]:
        return _waves(c_noise, 2 * math.pi * self.freqs)


def _waves(c_noise: Tensor, w: Tensor) -> Tensor:
    angles = c_noise.to(torch.promote_types(c_noise.dtype, torch.float32))[:, None] * w
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, fewer where a group would have less than four channels."""
    return nn.GroupNorm(num_groups(channels), channels, NORM_EPS)


class Resample(nn.Module):
    """Twice or half the resolution by a separable filter.

    Args:
        direction: "up" or "down".
        taps: the filter along one axis, an even number; normalised here.
    """

    resample_filter: Tensor

    def __init__(self, direction: str, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.direction = direction
        self.padding = (len(taps) - 1) // 2
        f = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("resample_filter", (f.outer(f) / f.sum() ** 2)[None, None])

    def resample(self, x: Shaped[Tensor, "B C H W"], padding: int) -> Shaped[Tensor, "B C H2 W2"]:
        """`x` filtered with `padding` zeros around it."""
        channels = x.shape[1]
        f = self.resample_filter.to(x.dtype).repeat(channels, 1, 1, 1)
        if self.direction == "up":
            return F.conv_transpose2d(x, 4 * f, groups=channels, stride=2, padding=padding)
        return F.conv2d(x, f, groups=channels, stride=2, padding=padding)

    def forward(self, x: Shaped[Tensor, "B C H W"]) -> Shaped[Tensor, "B C H2 W2"]:
        return self.resample(x, self.padding)


class ResampleConv(Resample):
    """`Resample` and then a convolution.

    Args:
        in_channels, out_channels: channels of input and output.
        kernel: side of the convolution.
        direction: "up" or "down".
        taps: filter along one axis.
        fused: true to convolve first and then filter, of direction "down" only; the result differs at the border, as
            the image is padded and not the filtered image.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        direction: str,
        taps: tuple[int, ...],
        fused: bool = False,
    ) -> None:
        super().__init__(direction, taps)
        self.fused = fused
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Shaped[Tensor, "B C H W"]) -> Shaped[Tensor, "B D H2 W2"]:
        same = self.weight.shape[-1] // 2
        if self.fused:
            h = F.conv2d(x, self.weight, padding=same + self.padding)
            return self.resample(h, 0) + self.bias[:, None, None]
        return F.conv2d(self.resample(x, self.padding), self.weight, self.bias, padding=same)


def scaled(h: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """A sum of two, which is not used elsewhere, times sqrt(1/2): in place if no gradients are recorded."""
    return h * SKIP_SCALE if torch.is_grad_enabled() else h.mul_(SKIP_SCALE)


def conv(in_channels: int, out_channels: int, kernel: int, gain: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the size.

    Args:
        in_channels, out_channels: channels of input and output.
        kernel: side of the kernel, odd.
        gain: factor of Glorot's uniform weights; the bias is 0.
    """
    return xavier(nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2), gain)


def head(in_channels: int, out_channels: int) -> nn.Conv2d:
    """The convolution at the end of a network or a branch of it, initialized nearly to 0."""
    return conv(in_channels, out_channels, 3, _NEARLY_ZERO)


def xavier(layer: Layer, gain: float = 1.0) -> Layer:
    """Glorot's uniform weights times `gain`; the bias is 0."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class SongBlock(Block):
    """Residual block: norm, SiLU, [resample], conv, + embedding, norm, SiLU, dropout, conv; then single-head attention.

    Both sums are scaled by sqrt(1/2), which keeps their variance.

    Args:
        in_channels, out_channels: channels of input and output.
        emb_channels: width of the embedding.
        resample: "up", "down" or None.
        taps: filter of the resampling along one axis.
        attention: true if attention follows.
        dropout: probability of dropout.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        resample: str | None,
        taps: tuple[int, ...],
        attention: bool,
        dropout: float,
    ) -> None:
        super().__init__()

        def maybe_resampled(kernel: int) -> nn.Module:
            if resample is None:
                return conv(in_channels, out_channels, kernel)
            return ResampleConv(in_channels, out_channels, kernel, direction=resample, taps=taps)

        self.norm0 = group_norm(in_channels)
        self.conv0 = maybe_resampled(3)
        self.affine = xavier(nn.Linear(emb_channels, out_channels))
        self.norm1 = group_norm(out_channels)
        self.dropout = Dropout(dropout)
        self.conv1 = head(out_channels, out_channels)
        self.skip = maybe_resampled(1) if resample or in_channels != out_channels else None
        self.attention = attention
        if attention:
            self.norm2 = group_norm(out_channels)
            self.qkv = conv(out_channels, 3 * out_channels, 1, math.sqrt(0.2))
            self.proj = conv(out_channels, out_channels, 1, _NEARLY_ZERO)

    def cast_convolutions(self, dtype: torch.dtype) -> None:
        """Casts all but the projection of the embedding, in place."""
        for name, part in self.named_children():
            if name != "affine":
                cast_part(part, dtype)

    def compute(
        self, x: Shaped[Tensor, "B C H W"], emb: Float[Tensor, "B E"], generator: torch.Generator | None
    ) -> Shaped[Tensor, "B D H2 W2"]:
        h, shift = silu(self.norm0(x)), self.affine(emb)
        if isinstance(self.conv0, nn.Conv2d):
            h = kernels.convolution(self.conv0, h, shift)
        else:
            h = self.conv0(h)
            h = h + shift.to(h.dtype)[:, :, None, None]
        h = kernels.convolution(self.conv1, self.dropout(silu(self.norm1(h)), generator))
        h = scaled(kernels.add(h, x if self.skip is None else self.skip(x)))
        return scaled(kernels.add(self.attend(h), h)) if self.attention else h

    def attend(self, h: Shaped[Tensor, "B C H W"]) -> Shaped[Tensor, "B C H W"]:
        """Applies attention over all pixels, by one head of all channels."""
        b, c, height, width = h.shape
        # Channel 3 i + j of qkv is channel i of q, k or v; SDPA takes pixels before channels.
        q, k, v = self.qkv(self.norm2(h)).reshape(b, 1, c, 3, -1).transpose(2, 4).unbind(3)
        a = kernels.attention(q, k, v).transpose(1, 2)
        return self.proj(a.reshape(b, c, height, width))
