"""The ADM U-Net (Dhariwal & Nichol 2021, arXiv 2105.05233), backbone of the consistency-model paper.

Configured by the fields of diffusers' `UNet2DModel`, with the same parameter names: a folder saved from here
opens there and the reverse. Blocks are named by their type, one a resolution:

    DownBlock2D / UpBlock2D                           residual blocks
    AttnDownBlock2D / AttnUpBlock2D                   residual blocks, each followed by attention
    ResnetDownsampleBlock2D / ResnetUpsampleBlock2D   residual blocks, resampling by a residual block

The time embedding takes `c_noise` = 250 ln(sigma).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from unistep.networks.layers import (
    Attention,
    Downsample,
    ResBlock,
    TimeEmbedding,
    Upsample,
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
        attention_head_dim: channels of one attention head; None is a single head.
        norm_num_groups: groups of every GroupNorm.
        attn_norm_num_groups: groups of the middle attention's norm; None is `norm_num_groups` there
            where the embedding is additive, else min(channels / 4, 32), as diffusers has it.
        norm_eps: epsilon of every GroupNorm.
        resnet_time_scale_shift: "scale_shift" modulates the second norm, "default" adds the embedding.
        add_attention: attention in the middle block.
        num_class_embeds: number of classes; None is unconditional.
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
        if self.resnet_time_scale_shift not in ("default", "scale_shift"):
            raise ValueError(
                f"resnet_time_scale_shift: {self.resnet_time_scale_shift!r} is neither 'default' nor 'scale_shift'"
            )
        for c in self.block_out_channels:
            if c % self.norm_num_groups:
                raise ValueError(f"block_out_channels: {c} is not divisible by norm_num_groups {self.norm_num_groups}")


class Stage(nn.Module):
    """All blocks of one resolution; submodules as diffusers names them."""

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], samplers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        for name, module in samplers.items():
            setattr(self, name, nn.ModuleList([module]))

    def blocks(self) -> list[tuple[nn.Module, nn.Module | None]]:
        attentions = list(getattr(self, "attentions", [])) or [None] * len(self.resnets)
        return list(zip(self.resnets, attentions, strict=True))


class UNet(nn.Module):
    """U-Net of `UNetConfig`.

    Call: `(x [B, C, H, W], c_noise [B], class_labels [B] | None, generator=None) -> [B, C, H, W]`;
    `generator` draws the dropout masks in training mode. H and W must be multiples of 2^(resolutions - 1).

    Raises:
        ValueError: labels missing for a conditional network, or given to an unconditional one.
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

        def attn(channels: int, groups: int = groups) -> Attention:
            return Attention(channels, c.attention_head_dim or channels, groups=groups, eps=eps)

        self.conv_in = nn.Conv2d(c.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], emb_channels)
        self.class_embedding = nn.Embedding(c.num_class_embeds, emb_channels) if c.num_class_embeds else None

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        width = widths[0]
        for i, (kind, out) in enumerate(zip(c.down_block_types, widths, strict=True)):
            resnets = [res(width if j == 0 else out, out) for j in range(c.layers_per_block)]
            attentions = [attn(out) for _ in resnets] if kind.startswith("Attn") else []
            samplers: dict[str, nn.Module] = {}
            if i < len(widths) - 1:
                by_resnet = kind.startswith("Resnet") or (kind.startswith("Attn") and c.downsample_type == "resnet")
                samplers["downsamplers"] = res(out, out, "down") if by_resnet else Downsample(out)
            self.down_blocks.append(Stage(list(resnets), list(attentions), samplers))
            width = out
            skips += [out] * (c.layers_per_block + bool(samplers))

        mid_groups = c.attn_norm_num_groups
        if mid_groups is None:
            mid_groups = groups if c.resnet_time_scale_shift == "default" else min(width // 4, 32)
        mid_attentions: list[nn.Module] = [attn(width, mid_groups)] if c.add_attention else []
        self.mid_block = Stage([res(width, width), res(width, width)], mid_attentions, {})

        self.up_blocks = nn.ModuleList()
        for i, (kind, out) in enumerate(zip(c.up_block_types, reversed(widths), strict=True)):
            resnets = []
            for _ in range(c.layers_per_block + 1):
                resnets.append(res(width + skips.pop(), out))
                width = out
            attentions = [attn(out) for _ in resnets] if kind.startswith("Attn") else []
            samplers = {}
            if i < len(widths) - 1:
                by_resnet = kind.startswith("Resnet") or (kind.startswith("Attn") and c.upsample_type == "resnet")
                samplers["upsamplers"] = res(out, out, "up") if by_resnet else Upsample(out)
            self.up_blocks.append(Stage(resnets, list(attentions), samplers))

        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps)
        self.conv_out = zero_init(nn.Conv2d(widths[0], c.out_channels, 3, padding=1))

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        c_noise: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D H W"]:
        if (class_labels is None) != (self.class_embedding is None):
            need = "needs class_labels" if class_labels is None else "is unconditional: class_labels must be None"
            raise ValueError(f"this network {need}")
        dtype = self.conv_in.weight.dtype
        emb = self.time_embedding(sinusoidal_embedding(c_noise, self.config.block_out_channels[0]).to(dtype))
        if self.class_embedding is not None:
            emb = emb + self.class_embedding(class_labels)
        emb = F.silu(emb)

        h = self.conv_in(x.to(dtype))
        skips = [h]
        for stage in self.down_blocks:
            for resnet, attention in stage.blocks():
                h = resnet(h, emb, generator)
                h = h if attention is None else attention(h)
                skips.append(h)
            for sampler in getattr(stage, "downsamplers", ()):
                h = sampler(h, emb, generator)
                skips.append(h)

        first, *rest = self.mid_block.resnets
        h = first(h, emb, generator)
        for i, resnet in enumerate(rest):
            if self.config.add_attention:
                h = self.mid_block.attentions[i](h)
            h = resnet(h, emb, generator)

        for stage in self.up_blocks:
            for resnet, attention in stage.blocks():
                h = resnet(torch.cat([h, skips.pop()], dim=1), emb, generator)
                h = h if attention is None else attention(h)
            for sampler in getattr(stage, "upsamplers", ()):
                h = sampler(h, emb, generator)

        return self.conv_out(F.silu(self.conv_norm_out(h)))
