"""The ADM U-Net (Dhariwal & Nichol 2021, arXiv 2105.05233), backbone of the consistency-model paper.

Configured by the fields of diffusers' `UNet2DModel`, with the same parameter names: a folder saved from here
opens there and the reverse. Blocks are named by their type, one a resolution:

    DownBlock2D / UpBlock2D                           residual blocks
    AttnDownBlock2D / AttnUpBlock2D                   residual blocks, each followed by attention
    ResnetDownsampleBlock2D / ResnetUpsampleBlock2D   residual blocks, resampling by a residual block

The time embedding takes `c_noise` = 250 ln(sigma).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from unistep.networks.adm_config import UNetConfig
from unistep.networks.layers import (
    Attention,
    Downsample,
    FurtherEmbedding,
    ResBlock,
    TimeEmbedding,
    Upsample,
    cast_part,
    check_call,
    check_further,
    memory_format,
    silu,
    sinusoidal_embedding,
    zero_init,
)


class Stage(nn.Module):
    """All blocks of one resolution, submodules as diffusers names them.

    Args:
        resnets: residual blocks.
        attentions: attention after each residual block; empty for none.
    """

    def __init__(self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)

    def block(
        self, i: int, h: Shaped[Tensor, "B C H W"], emb: Shaped[Tensor, "B E"], generator: torch.Generator | None
    ) -> Shaped[Tensor, "B D H W"]:
        """Applies residual block `i` and the attention after it."""
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
        """Returns the output of every block, each of them a skip connection; the last is the input of what follows."""
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
        """Applies all blocks; each takes the last of `skips` and removes it."""
        for i in range(len(self.resnets)):
            h = self.block(i, torch.cat([h, skips.pop()], dim=1), emb, generator)
        for sampler in self.upsamplers:
            h = sampler(h, emb, generator)
        return h


class UNet(nn.Module):
    """U-Net of `UNetConfig`.

    Call: `(x [B, C, H, W], c_noise [B], class_labels [B] | None, generator=None) -> [B, C, H, W]`;
    `generator` draws the dropout masks in training mode. Networks with these inputs are also given `c_end` and
    `c_guidance` [B], the end of the trajectory and the scale of guidance as numbers in [0, 1]. H and W must be
    multiples of 2^(resolutions - 1).

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
            return Attention(channels, c.head_dim(channels), groups=groups, eps=eps)

        def by_resnet(kind: str, attending: str) -> bool:
            return kind.startswith("Resnet") or (kind.startswith("Attn") and attending == "resnet")

        self.conv_in = nn.Conv2d(c.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], emb_channels)
        self.class_embedding = nn.Embedding(c.num_class_embeds, emb_channels) if c.num_class_embeds else None
        self.end_embedding = FurtherEmbedding(widths[0], emb_channels) if c.end_embedding else None
        self.guidance_embedding = FurtherEmbedding(widths[0], emb_channels) if c.guidance_embedding else None

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

    def blocks(self) -> list[nn.Module]:
        """The parts, with most of the weights, that are called one after the other: residual blocks and attention."""
        stages = (*self.down_blocks, self.mid_block, *self.up_blocks)
        return [part for stage in stages for parts in stage.children() for part in parts.children()]

    def cast_blocks(self, dtype: torch.dtype) -> "UNet":
        """Casts all but embeddings, first convolution and output head, in place; the output keeps their dtype.

        So the published models run in half precision, but for the first convolution, which costs little, and whose
        rounding of the image is 1 to 2 dB of the whole; `.half()` rounds the embedding and the output as well.
        """
        for part in (self.down_blocks, self.mid_block, self.up_blocks):
            cast_part(part, dtype)
        return self

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        c_noise: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        *,
        generator: torch.Generator | None = None,
        c_end: Float[Tensor, " B"] | None = None,
        c_guidance: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B D H W"]:
        depth = len(self.config.block_out_channels)
        check_call(x, class_labels, conditional=self.class_embedding is not None, resolutions=depth)
        return self.head(self.trunk(x, self.embed(c_noise, class_labels, c_end, c_guidance), generator))

    def embed(
        self,
        c_noise: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None,
        c_end: Float[Tensor, " B"] | None = None,
        c_guidance: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B E"]:
        """All inputs but the image as one vector an image, in the dtype of its layers, which `cast_blocks` leaves."""
        further = (self.end_embedding, c_end), (self.guidance_embedding, c_guidance)
        check_further(c_end=(further[0][0] is not None, c_end), c_guidance=(further[1][0] is not None, c_guidance))
        waves = sinusoidal_embedding(c_noise, self.config.block_out_channels[0])
        emb = self.time_embedding(waves.to(self.time_embedding.linear_1.weight.dtype))
        if self.class_embedding is not None:
            emb = emb + self.class_embedding(class_labels)
        for embedding, c in further:
            if embedding is not None and c is not None:
                emb = emb + embedding(c)
        return silu(emb)

    def trunk(
        self, x: Float[Tensor, "B C H W"], emb: Float[Tensor, "B E"], generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """The features [B, F, H, W] that the output head is given: all that `cast_blocks` casts."""
        # Each part computes in the dtype of its own weights: see `cast_blocks`.
        first, dtype = self.conv_in.weight, next(self.mid_block.parameters()).dtype
        emb = emb.to(dtype)
        # One memory format all through, that of the weights: a change of it on the way costs a copy at every layer.
        h = self.conv_in(x.to(first.dtype).contiguous(memory_format=memory_format(first)))
        if first.dtype != dtype:
            h = h.to(dtype)
        skips = [h]
        for down in self.down_blocks:
            skips += down(h, emb, generator)
            h = skips[-1]
        h = self.mid_block(h, emb, generator)
        for up in self.up_blocks:
            h = up(h, skips, emb, generator)
        return (h,)

    def head(self, features: tuple[Tensor, ...]) -> Float[Tensor, "B D H W"]:
        """The output of the network from its features."""
        (h,) = features
        return self.conv_out(silu(self.conv_norm_out(h.to(self.conv_norm_out.weight.dtype))))
