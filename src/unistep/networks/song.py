"""The U-Nets of Song et al. 2021 (arXiv 2011.13456), DDPM++ and NCSN++, as EDM builds them (Karras et al. 2022).

                      DDPM++        NCSN++
    embedding_type    positional    fourier
    channel_mult_noise    1             2
    encoder_type      standard      residual
    resample_filter   1, 1          1, 3, 3, 1

Fields and parameters have the names of EDM's checkpoints: `enc.32x32_block0.norm0.weight`. In EDM's own models
`c_noise` is ln(sigma) / 4. Source: Karras et al. 2022 (arXiv 2206.00364), appendix C.1, table 7.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unistep.networks.layers import cast_part, check_call, check_further, memory_format
from unistep.networks.song_config import Level, Part, SongUNetConfig, levels_of
from unistep.networks.song_layers import (
    FourierEmbedding,
    PositionalEmbedding,
    Resample,
    ResampleConv,
    SongBlock,
    conv,
    further_embedding,
    group_norm,
    head,
    xavier,
)


class SongUNet(nn.Module):
    """U-Net of `SongUNetConfig`.

    Call: `(x [B, C, H, W], c_noise [B], class_labels [B] | None, generator=None) -> [B, D, H, W]`. In training mode
    `generator` draws the dropout masks and the labels that are hidden. `augment_labels` [B, augment_dim] are the labels
    of the images' augmentation; None, as in sampling, is no augmentation. Networks with these inputs are also given
    `c_end` and `c_guidance` [B], the end of the trajectory and the scale of guidance as numbers in [0, 1]. H and W must
    be multiples of 2^(resolutions - 1).

    Raises:
        ValueError: labels missing for a conditional network, or given to an unconditional one; an image size that
            is not such a multiple.
    """

    def __init__(self, config: SongUNetConfig) -> None:
        super().__init__()
        self.config = c = config
        self.levels = levels_of(c)
        emb_channels = c.model_channels * c.channel_mult_emb
        noise_channels = c.model_channels * c.channel_mult_noise
        taps = c.resample_filter

        positional = c.embedding_type == "positional"
        self.map_noise = (
            PositionalEmbedding(noise_channels) if positional else FourierEmbedding(noise_channels, c.fourier_scale)
        )
        self.map_label = xavier(nn.Linear(c.num_class_embeds, noise_channels)) if c.num_class_embeds else None
        self.map_augment = xavier(nn.Linear(c.augment_dim, noise_channels, bias=False)) if c.augment_dim else None
        self.map_end = further_embedding(noise_channels) if c.end_embedding else None
        self.map_guidance = further_embedding(noise_channels) if c.guidance_embedding else None
        self.map_layer0 = xavier(nn.Linear(noise_channels, emb_channels))
        self.map_layer1 = xavier(nn.Linear(emb_channels, emb_channels))

        def block(part: Part) -> SongBlock:
            return SongBlock(
                part.in_channels,
                part.out_channels,
                emb_channels,
                resample=part.resample,
                taps=taps,
                attention=part.attention,
                dropout=c.dropout,
            )

        finest = self.levels[0]
        self.enc = nn.ModuleDict({f"{finest.name}_conv": conv(c.in_channels, c.model_channels, 3)})
        aux_channels = c.in_channels
        for level in self.levels:
            for part in level.encoder:
                self.enc[part.name] = block(part)
                if part.resample and c.encoder_type == "skip":
                    self.enc[f"{level.name}_aux_down"] = Resample("down", taps)
                    self.enc[f"{level.name}_aux_skip"] = conv(c.in_channels, part.out_channels, 1)
                if part.resample and c.encoder_type == "residual":
                    self.enc[f"{level.name}_aux_residual"] = ResampleConv(
                        aux_channels, part.out_channels, 3, direction="down", taps=taps, fused=True
                    )
                    aux_channels = part.out_channels

        self.dec = nn.ModuleDict()
        for level in reversed(self.levels):
            for part in level.decoder:
                self.dec[part.name] = block(part)
            if c.decoder_type == "skip" and level != self.levels[-1]:
                self.dec[f"{level.name}_aux_up"] = Resample("up", taps)
            if c.decoder_type == "skip" or level == finest:
                self.dec[f"{level.name}_aux_norm"] = group_norm(level.decoder[-1].out_channels)
                self.dec[f"{level.name}_aux_conv"] = head(level.decoder[-1].out_channels, c.out_channels)

    def blocks(self) -> list[nn.Module]:
        """The parts, with most of the weights, that are called one after the other."""
        return [part for part in (*self.enc.values(), *self.dec.values()) if isinstance(part, SongBlock)]

    def cast_blocks(self, dtype: torch.dtype) -> "SongUNet":
        """Casts all but the embeddings, their projections in the blocks and the output heads, in place.

        The output keeps their dtype.
        """
        for part in self.enc.values():
            part.cast_convolutions(dtype) if isinstance(part, SongBlock) else cast_part(part, dtype)
        for part in self.dec.values():
            if isinstance(part, SongBlock):
                part.cast_convolutions(dtype)
        return self

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        c_noise: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        *,
        generator: torch.Generator | None = None,
        augment_labels: Float[Tensor, "B A"] | None = None,
        c_end: Float[Tensor, " B"] | None = None,
        c_guidance: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B D H W"]:
        check_call(x, class_labels, conditional=self.map_label is not None, resolutions=len(self.levels))
        if augment_labels is not None and self.map_augment is None:
            raise ValueError("this network was not trained with augmentation: augment_labels must be None")
        emb = self.embed(c_noise, class_labels, generator, augment_labels, c_end, c_guidance)
        return self.head(self.trunk(x, emb, generator))

    def trunk(
        self, x: Float[Tensor, "B C H W"], emb: Float[Tensor, "B E"], generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """The features [B, F, H, W] that the output heads are given, coarsest first."""
        # Each part computes in the dtype of its own weights: see `cast_blocks`.
        first: Any = self.enc[f"{self.levels[0].name}_conv"]
        # In the memory format of the weights all through: a change of it on the way costs a copy at every layer.
        aux = x.to(_dtype_of(first)).contiguous(memory_format=memory_format(first.weight))
        h = first(aux)
        skips = [h]
        for level in self.levels:
            for part in level.encoder:
                h = self.enc[part.name](h, emb, generator)
                if part.resample and self.config.encoder_type != "standard":
                    h, aux = self._show_again(level, h, aux)
                skips.append(h)

        features = []
        for level in reversed(self.levels):
            for part in level.decoder:
                if part.takes_skip:
                    h = torch.cat([h, skips.pop()], dim=1)
                h = self.dec[part.name](h, emb, generator)
            if f"{level.name}_aux_conv" in self.dec:
                features.append(h)
        return tuple(features)

    def head(self, features: tuple[Tensor, ...]) -> Float[Tensor, "B D H W"]:
        """The output of the network from its features: that of every head, added up from the coarsest."""
        out = None
        heads = [level for level in reversed(self.levels) if f"{level.name}_aux_conv" in self.dec]
        for level, h in zip(heads, features, strict=True):
            norm = self.dec[f"{level.name}_aux_norm"]
            added = self.dec[f"{level.name}_aux_conv"](F.silu(norm(h.to(_dtype_of(norm)))))
            out = added if out is None else added + self.dec[f"{level.name}_aux_up"](out)
        assert out is not None  # the finest level always has a head
        return out

    def embed(
        self,
        c_noise: Tensor,
        class_labels: Tensor | None,
        generator: torch.Generator | None = None,
        augment_labels: Tensor | None = None,
        c_end: Tensor | None = None,
        c_guidance: Tensor | None = None,
    ) -> Tensor:
        """Noise level, class, augmentation, end and guidance as one vector an image, [B, E]."""
        dtype = self.map_layer0.weight.dtype
        emb = self.map_noise(c_noise).to(dtype)
        if self.map_label is not None and class_labels is not None:
            classes = self.map_label.in_features
            labels = F.one_hot(class_labels.long(), classes).to(dtype)
            if self.training and self.config.label_dropout and generator is not None:
                drawn = torch.rand(len(labels), 1, device=labels.device, generator=generator)
                labels = labels * (drawn >= self.config.label_dropout)
            emb = emb + self.map_label(labels * math.sqrt(classes))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(dtype))
        check_further(c_end=(self.map_end is not None, c_end), c_guidance=(self.map_guidance is not None, c_guidance))
        for further, c in ((self.map_end, c_end), (self.map_guidance, c_guidance)):
            if further is not None and c is not None:
                emb = emb + further[1](further[0](c).to(dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def _show_again(self, level: Level, h: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the image, downsampled, to the features of a coarser level; returns features and image."""
        if self.config.encoder_type == "skip":
            aux = self.enc[f"{level.name}_aux_down"](aux)
            return h + self.enc[f"{level.name}_aux_skip"](aux), aux
        h = (h + self.enc[f"{level.name}_aux_residual"](aux)) / math.sqrt(2)
        return h, h


def _dtype_of(part: nn.Module) -> torch.dtype:
    return next(part.parameters()).dtype
