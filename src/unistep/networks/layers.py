"""Layers of U-Nets: dropout with an explicit generator, time embedding, residual block, attention.

Parameter names are those of diffusers' blocks, so that weights need no renaming.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unistep.networks import kernels
from unistep.networks.block import Block

M = TypeVar("M", bound=nn.Module)


class Dropout(nn.Module):
    """Inverted dropout with a mask from the generator of the call.

    Student and target networks called with equally seeded generators have the same mask, on every device.
    It is the identity in `eval()` mode, for `p = 0` and without a generator.

    Args:
        p: probability that a number is set to 0.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Shaped[Tensor, "..."], generator: torch.Generator | None) -> Shaped[Tensor, "..."]:
        if not self.training or self.p == 0 or generator is None:
            return x
        keep = torch.rand(x.shape, device=x.device, generator=generator) >= self.p
        return x * keep / (1 - self.p)


def sinusoidal_embedding(c_noise: Float[Tensor, " B"], dim: int) -> Float[Tensor, "B dim"]:
    """`[cos(c w_i), sin(c w_i)]`, `w_i = 10000^(-i / (dim/2))`; at least fp32, dim even. Source: ADM."""
    half = dim // 2
    # Multiplied before it is divided, as in the published code: c_noise reaches 1000, so that the last bit of w_i
    # shows in the fifth digit after the point of the angle.
    w = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=c_noise.device) / half)
    angles = c_noise.to(torch.promote_types(c_noise.dtype, torch.float32))[:, None] * w
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def silu(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """SiLU of a tensor that is not used elsewhere: in place if no gradients are recorded."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def check_call(
    x: Shaped[Tensor, "B C H W"], class_labels: Shaped[Tensor, " B"] | None, *, conditional: bool, resolutions: int
) -> None:
    """Checks the arguments of a U-Net's call.

    Args:
        x: images.
        class_labels: class of each image, or None.
        conditional: true for a class-conditional network.
        resolutions: number of resolutions of the network.

    Raises:
        ValueError: labels are missing, or given to an unconditional network; sides that cannot be halved so often.
    """
    if (class_labels is None) == conditional:
        need = "needs class_labels" if conditional else "is unconditional: class_labels must be None"
        raise ValueError(f"this network {need}")
    multiple = 2 ** (resolutions - 1)
    if x.shape[2] % multiple or x.shape[3] % multiple:
        raise ValueError(
            f"images of {x.shape[2]}x{x.shape[3]} pixels do not fit this network: it halves them "
            f"{resolutions - 1} times, so sides must be multiples of {multiple}"
        )


def check_further(**inputs: tuple[bool, object]) -> None:
    """Checks that a network is given the further inputs that it has, and no others: without one it is another function.

    Args:
        inputs: pair for each input by name: whether the network has it, and its value.

    Raises:
        ValueError: one is missing, or given to a network without it.
    """
    for name, (has, value) in inputs.items():
        if has != (value is not None):
            raise ValueError(f"this network {'needs' if has else 'has no input'} {name}")


def memory_format(weight: Shaped[Tensor, "..."]) -> torch.memory_format:
    """The memory format of a convolution's weight, which is best for its input too."""
    return torch.contiguous_format if weight.is_contiguous() else torch.channels_last


def cast_part(part: nn.Module, dtype: torch.dtype) -> None:
    """Casts a part of a network in place, its convolutions to channels last in the same pass over their weights.

    Args:
        part: part of a network.
        dtype: precision that it is to compute in.
    """
    part.to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class TimeEmbedding(nn.Module):
    """Two linear layers with SiLU between."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Shaped[Tensor, "B C"]) -> Shaped[Tensor, "B E"]:
        return self.linear_2(silu(self.linear_1(x)))


class FurtherEmbedding(nn.Module):
    """Embedding of a further number of each image, in [0, 1]; 0 at first, whatever the number.

    So a network with weights of one without it begins as that.

    Args:
        dim: width of the sinusoidal embedding, even.
        out_channels: width of the embedding that it is added to.
    """

    def __init__(self, dim: int, out_channels: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear_1 = nn.Linear(dim, out_channels)
        self.linear_2 = zero_init(nn.Linear(out_channels, out_channels))

    def forward(self, c: Float[Tensor, " B"]) -> Shaped[Tensor, "B E"]:
        return self.linear_2(silu(self.linear_1(sinusoidal_embedding(c, self.dim).to(self.linear_1.weight.dtype))))


class ResBlock(Block):
    """Residual block of ADM: GroupNorm, SiLU, [resample], conv, + embedding, GroupNorm, SiLU, dropout, conv.

    Args:
        in_channels, out_channels: channels of input and output.
        emb_channels: width of the embedding.
        groups, eps: groups and epsilon of every GroupNorm.
        dropout: probability of dropout.
        scale_shift: true if the embedding modulates the second norm, `h (1 + scale) + shift`; otherwise it is added.
        resample: "up" (nearest, x2) or "down" (mean of 2x2), applied to both branches; None keeps the resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        groups: int,
        eps: float,
        dropout: float,
        scale_shift: bool,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_channels, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.scale_shift = scale_shift
        self.resample = resample

    def compute(
        self, x: Shaped[Tensor, "B C H W"], emb: Shaped[Tensor, "B E"], generator: torch.Generator | None
    ) -> Shaped[Tensor, "B C2 H2 W2"]:
        # `emb` arrives activated: SiLU of it is the same for every block, so the network does it once.
        h = silu(self.norm1(x))
        if self.resample == "up":
            h, x = (F.interpolate(v, scale_factor=2.0, mode="nearest") for v in (h, x))
        elif self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if self.scale_shift:
            h = kernels.modulated(self.norm2, kernels.convolution(self.conv1, h), *self._scale_and_shift(emb))
        else:
            h = self.norm2(kernels.convolution(self.conv1, h, self.time_emb_proj(emb)))
        h = kernels.convolution(self.conv2, self.dropout(silu(h), generator))
        return kernels.add(h, x if self.conv_shortcut is None else self.conv_shortcut(x))

    def _scale_and_shift(self, emb: Tensor) -> tuple[Tensor, ...]:
        """The two halves of the projected embedding."""
        layer = self.time_emb_proj
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            # OpenVINO 2026.4 crashes when it compiles one product and a split of it, in fp32 with fixed shapes.
            halves = zip(layer.weight.chunk(2), layer.bias.chunk(2), strict=True)
            return tuple(F.linear(emb, weight, bias) for weight, bias in halves)
        return layer(emb).chunk(2, dim=1)


class Attention(Block):
    """Residual self-attention over pixels.

    Args:
        channels: channels of input and output.
        head_dim: channels of a head, a divisor of `channels`.
        groups: groups of the norm; None is no norm.
        eps: epsilon of the norm.
    """

    def __init__(self, channels: int, head_dim: int, *, groups: int | None, eps: float) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.group_norm = None if groups is None else nn.GroupNorm(groups, channels, eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([zero_init(nn.Linear(channels, channels))])

    def compute(self, x: Shaped[Tensor, "B C H W"]) -> Shaped[Tensor, "B C H W"]:
        b, c, _, _ = x.shape
        h = x if self.group_norm is None else self.group_norm(x)
        # Once here, or each of the three projections makes its own copy.
        h = h.flatten(2).transpose(1, 2).contiguous()
        q, k, v = (
            layer(h).view(b, -1, self.heads, c // self.heads).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        h = self.to_out[0](kernels.attention(q, k, v))
        return kernels.add(kernels.as_image(h, x), x)


class Downsample(Block):
    """3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def compute(
        self, x: Shaped[Tensor, "B C H W"], emb: Shaped[Tensor, "B E"], generator: torch.Generator | None
    ) -> Shaped[Tensor, "B C H2 W2"]:
        return self.conv(x)


class Upsample(Block):
    """Nearest x2, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def compute(
        self, x: Shaped[Tensor, "B C H W"], emb: Shaped[Tensor, "B E"], generator: torch.Generator | None
    ) -> Shaped[Tensor, "B C H2 W2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def zero_init(module: M) -> M:
    """Sets a module's parameters to 0, so that a residual branch starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module
