"""The architecture of the ADM U-Net, `unistep.networks.adm`, in the fields of diffusers' `UNet2DModel`."""

from dataclasses import dataclass
from typing import ClassVar

from unistep.networks.outline import Outline, further_inputs, resolutions

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
        end_embedding: true for a network of flow maps, which takes the end of the trajectory as an input.
        guidance_embedding: true for a network that takes the scale of guidance as an input.

    Attributes:
        num_heads: number of attention heads at every resolution; None, for it is that of `HeadsUNetConfig`.

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
    end_embedding: bool = False
    guidance_embedding: bool = False

    num_heads: ClassVar[int | None] = None  # diffusers has no such field

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
        for field in ("sample_size", "attention_head_dim", "attn_norm_num_groups", "num_class_embeds", "num_heads"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}: {value} is neither at least 1 nor null")
        if self.num_heads is not None and self.attention_head_dim is not None:
            raise ValueError(
                f"num_heads {self.num_heads} and attention_head_dim {self.attention_head_dim} exclude each other; "
                "one must be null"
            )
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
            if self.num_heads and width % self.num_heads:
                raise ValueError(
                    f"num_heads: {self.num_heads} does not divide the width {width} of a resolution that attends; "
                    "choose a divisor"
                )

    def head_dim(self, width: int) -> int:
        """Returns the channels of an attention head at a width."""
        if self.num_heads is not None:
            return width // self.num_heads
        return self.attention_head_dim or width

    def outline(self) -> Outline:
        """The layers in a few numbers."""
        size = self.sample_size or 64
        attends = [kind.startswith("Attn") for kind in self.down_block_types]
        return Outline(
            resolutions=resolutions(size, self.block_out_channels, attends),
            blocks_per_resolution=self.layers_per_block,
            attention_head_dim=self.attention_head_dim,
            middle_attention=self.add_attention,
            embedding="scale and shift" if self.resnet_time_scale_shift == "scale_shift" else "added",
            further=further_inputs(self.end_embedding, self.guidance_embedding),
        )


@dataclass(frozen=True)
class HeadsUNetConfig(UNetConfig):
    """A `UNet` with one number of attention heads at every resolution, which diffusers has not.

    Args:
        num_heads: number of attention heads, a divisor of every width that attends; `attention_head_dim` must be None.
    """

    num_heads: int | None = None
