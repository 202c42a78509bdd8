"""The ADM U-Net (Dhariwal & Nichol 2021, arXiv 2105.05233), backbone of the consistency-model paper.

Configured by the fields of diffusers' `UNet2DModel`, with the same parameter names: a folder saved from here
opens there and the reverse. Blocks are named by their type, one a resolution:

    DownBlock2D / UpBlock2D                           residual blocks
    AttnDownBlock2D / AttnUpBlock2D                   residual blocks, each followed by attention
    ResnetDownsampleBlock2D / ResnetUpsampleBlock2D   residual blocks, resampling by a residual block

The time embedding takes `c_noise` = 250 ln(sigma).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from unistep.networks.layers import (
    Attention,
    Downsample,
    ResBlock,
    TimeEmbedding,
    Upsample,
    check_call,
    memory_format,
    silu,
    sinusoidal_embedding,
    zero_init,
)

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of a `UNet`, in the fields of diffusers' `UNet2DModel`.

    Args:
        sample_size: side of the image in pixels.
        in_channels, out_channels: channels of the image.
        down_block_types, up_block_types: block names, finest resolution first / last.
        block_out_channels: width of each resolution, finest first.
        layers_per_block: residual blocks a resolution.
        downsample_type, upsample_type: "resnet" (residual block) or "conv", where a block attends.
        dropout: probability inside residual blocks.
        attention_head_dim: channels of one attention head, a divisor of every width that attends; None is a
            single head.
        norm_num_groups: groups of every GroupNorm.
        attn_norm_num_groups: groups of the middle attention's norm; None is `norm_num_groups` where the embedding
            is additive and no norm at all where it is "scale_shift", as diffusers has it.
        norm_eps: epsilon of every GroupNorm.
        resnet_time_scale_shift: "scale_shift" modulates the second norm, "default" adds the embedding.
        add_attention: attention in the middle block.
        num_class_embeds: number of classes; None is unconditional.

    Raises:
        ValueError: a value out of range, or two that do not fit each other.
    """

    sample_size: int | None = 64
    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
    block_out_channels: tuple[int, ...] = (64, 128, 192)
    layers_per_block: int = 2
    downsample_type: str = "resnet"
    upsample_type: str = "resnet"
    dropout: float = 0.0
    attention_head_dim: int | None = 64
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "scale_shift"
    add_attention: bool = True
    num_class_embeds: int | None = None

    def __post_init__(self) -> None:
        self._check_ranges()
        depth = len(self.block_out_channels)
        if not depth == len(self.down_block_types) == len(self.up_block_types):
            raise ValueError(
                f"block_out_channels ({depth}), down_block_types ({len(self.down_block_types)}) and "
                f"up_block_types ({len(self.up_block_types)}) must have the same length"
            )
        for field, names, known in (
            ("down_block_types", self.down_block_types, DOWN_BLOCKS),
            ("up_block_types", self.up_block_types, UP_BLOCKS),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(f"{field}: unknown block {name!r}; known are {', '.join(known)}")
        self._check_widths()

    def _check_ranges(self) -> None:
        for field in ("in_channels", "out_channels", "layers_per_block", "norm_num_groups"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: {getattr(self, field)} is not at least 1")
        for field in ("sample_size", "attention_head_dim", "attn_norm_num_groups", "num_class_embeds"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}: {value} is neither at least 1 nor null")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is outside [0, 1)")
        if not 0 < self.norm_eps < 1:
            raise ValueError(f"norm_eps: {self.norm_eps} is outside (0, 1)")
        for field, known in (
            ("resnet_time_scale_shift", ("default", "scale_shift")),
            ("downsample_type", ("conv", "resnet")),
            ("upsample_type", ("conv", "resnet")),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"{field}: {getattr(self, field)!r} is neither {known[0]!r} nor {known[1]!r}")

    def _check_widths(self) -> None:
        widths = self.block_out_channels
        if not widths:
            raise ValueError("block_out_channels: at least one resolution is needed")
        for width in widths:
            if width < 1 or width % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels: {width} is not a multiple of norm_num_groups {self.norm_num_groups}"
                )
        multiple = 2 ** (len(widths) - 1)
        if self.sample_size is not None and self.sample_size % multiple:
            raise ValueError(
                f"sample_size {self.sample_size} is not a multiple of {multiple} ({len(widths)} resolutions)"
            )
        if widths[0] % 2:
            raise ValueError(f"block_out_channels: the first, {widths[0]}, must be even: half cosines, half sines")
        if self.add_attention and self.attn_norm_num_groups and widths[-1] % self.attn_norm_num_groups:
            raise ValueError(
                f"block_out_channels: the last, {widths[-1]}, is not a multiple of "
                f"attn_norm_num_groups {self.attn_norm_num_groups}"
            )
        kinds = zip(widths, self.down_block_types, reversed(self.up_block_types), strict=True)
        attending = [width for width, *blocks in kinds if any(b.startswith("Attn") for b in blocks)]
        for width in attending + [widths[-1]] * self.add_attention:
            if self.attention_head_dim and width % self.attention_head_dim:
                raise ValueError(
                    f"attention_head_dim: {self.attention_head_dim} does not divide the width {width} of a resolution "
                    f"that attends; choose a divisor"
                )


class Stage(nn.Module):
    """All blocks of one resolution, submodules as diffusers names them; no attentions, or one a residual block."""

    def __init__(self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)

    def block(
        self, i: int, h: Shaped[Tensor, "B C H W"], emb: Shaped[Tensor, "B E"], generator: torch.Generator | None
    ) -> Shaped[Tensor, "B D H W"]:
        """Residual block `i` and the attention after it."""
        h = self.resnets[i](h, emb, generator)
        return self.attentions[i](h) if self.attentions else h


class DownStage(Stage):
    """A resolution of the encoder; `downsamplers` holds the step to the next one, where there is one."""

    def __init__(
        self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module], downsamplers: Sequence[nn.Module]
    ) -> None:
        super().__init__(resnets, attentions)
        self.downsamplers = nn.ModuleList(downsamplers)

    def forward(
        self, h: Shaped[Tensor, "B C H W"], emb: Shaped[Tensor, "B E"], generator: torch.Generator | None
    ) -> list[Tensor]:
        """The output of every block, each of them a skip connection; the last goes on."""
        outputs = []
        for i in range(len(self.resnets)):
            h = self.block(i, h, emb, generator)
            outputs.append(h)
        for sampler in self.downsamplers:
            outputs.append(sampler(h, emb, generator))
        return outputs


class MidStage(Stage):
    """The middle block: residual block, attention, residual block."""

    def forward(
        self, h: Shaped[Tensor, "B C H W"], emb: Shaped[Tensor, "B E"], generator: torch.Generator | None
    ) -> Shaped[Tensor, "B C H W"]:
        h = self.block(0, h, emb, generator)
        return self.resnets[1](h, emb, generator)


class UpStage(Stage):
    """A resolution of the decoder; `upsamplers` holds the step to the next one, where there is one."""

    def __init__(
        self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module], upsamplers: Sequence[nn.Module]
    ) -> None:
        super().__init__(resnets, attentions)
        self.upsamplers = nn.ModuleList(upsamplers)

    def forward(
        self,
        h: Shaped[Tensor, "B C H W"],
        skips: list[Tensor],
        emb: Shaped[Tensor, "B E"],
        generator: torch.Generator | None,
    ) -> Shaped[Tensor, "B D H2 W2"]:
        """Every block takes the last of `skips`, which it removes."""
        for i in range(len(self.resnets)):
            h = self.block(i, torch.cat([h, skips.pop()], dim=1), emb, generator)
        for sampler in self.upsamplers:
            h = sampler(h, emb, generator)
        return h


class UNet(nn.Module):
    """U-Net of `UNetConfig`.

    Call: `(x [B, C, H, W], c_noise [B], class_labels [B] | None, generator=None) -> [B, C, H, W]`;
    `generator` draws the dropout masks in training mode. H and W must be multiples of 2^(resolutions - 1).

    Raises:
        ValueError: labels missing for a conditional network, or given to an unconditional one; an image size that
            is not such a multiple.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = c = config
        widths = c.block_out_channels
        emb_channels = 4 * widths[0]
        groups, eps = c.norm_num_groups, c.norm_eps

        def res(c_in: int, c_out: int, resample: str | None = None) -> ResBlock:
            return ResBlock(
                c_in,
                c_out,
                emb_channels,
                groups=groups,
                eps=eps,
                dropout=c.dropout,
                scale_shift=c.resnet_time_scale_shift == "scale_shift",
                resample=resample,
            )

        def attn(channels: int, groups: int | None = groups) -> Attention:
            return Attention(channels, c.attention_head_dim or channels, groups=groups, eps=eps)

        def by_resnet(kind: str, attending: str) -> bool:
            return kind.startswith("Resnet") or (kind.startswith("Attn") and attending == "resnet")

        self.conv_in = nn.Conv2d(c.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], emb_channels)
        self.class_embedding = nn.Embedding(c.num_class_embeds, emb_channels) if c.num_class_embeds else None

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        width = widths[0]
        for i, (kind, out) in enumerate(zip(c.down_block_types, widths, strict=True)):
            resnets = [res(width if j == 0 else out, out) for j in range(c.layers_per_block)]
            attentions = [attn(out) for _ in resnets] if kind.startswith("Attn") else []
            downsamplers = []
            if i < len(widths) - 1:
                downsamplers = [res(out, out, "down") if by_resnet(kind, c.downsample_type) else Downsample(out)]
            self.down_blocks.append(DownStage(resnets, attentions, downsamplers))
            width = out
            skips += [out] * (c.layers_per_block + len(downsamplers))

        mid_groups = c.attn_norm_num_groups
        if mid_groups is None and c.resnet_time_scale_shift == "default":
            mid_groups = groups
        mid_attentions = [attn(width, mid_groups)] if c.add_attention else []
        self.mid_block = MidStage([res(width, width), res(width, width)], mid_attentions)

        self.up_blocks = nn.ModuleList()
        for i, (kind, out) in enumerate(zip(c.up_block_types, reversed(widths), strict=True)):
            resnets = []
            for _ in range(c.layers_per_block + 1):
                resnets.append(res(width + skips.pop(), out))
                width = out
            attentions = [attn(out) for _ in resnets] if kind.startswith("Attn") else []
            upsamplers = []
            if i < len(widths) - 1:
                upsamplers = [res(out, out, "up") if by_resnet(kind, c.upsample_type) else Upsample(out)]
            self.up_blocks.append(UpStage(resnets, attentions, upsamplers))

        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps)
        self.conv_out = zero_init(nn.Conv2d(widths[0], c.out_channels, 3, padding=1))

    def cast_blocks(self, dtype: torch.dtype) -> "UNet":
        """Casts all but the time and class embeddings and the output head, in place; the output keeps their dtype.

        So the published models run in half precision; `.half()` rounds the embedding and the output as well.
        """
        for part in (self.conv_in, self.down_blocks, self.mid_block, self.up_blocks):
            part.to(dtype)
        return self

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        c_noise: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D H W"]:
        depth = len(self.config.block_out_channels)
        check_call(x, class_labels, conditional=self.class_embedding is not None, resolutions=depth)
        # Each part computes in the dtype of its own weights: see `cast_blocks`.
        dtype = self.conv_in.weight.dtype
        waves = sinusoidal_embedding(c_noise, self.config.block_out_channels[0])
        emb = self.time_embedding(waves.to(self.time_embedding.linear_1.weight.dtype))
        if self.class_embedding is not None:
            emb = emb + self.class_embedding(class_labels)
        emb = silu(emb).to(dtype)

        # One memory format all through, that of the weights: a change of it on the way costs a copy at every layer.
        h = self.conv_in(x.to(dtype).contiguous(memory_format=memory_format(self.conv_in.weight)))
        skips = [h]
        for down in self.down_blocks:
            skips += down(h, emb, generator)
            h = skips[-1]
        h = self.mid_block(h, emb, generator)
        for up in self.up_blocks:
            h = up(h, skips, emb, generator)
        return self.conv_out(silu(self.conv_norm_out(h.to(self.conv_norm_out.weight.dtype))))
