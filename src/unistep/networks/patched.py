"""A U-Net on folded images: `p x p` pixels become channels, the network works at 1/p of the resolution.

Small grey images spend most of a pixel-space U-Net's time on narrow, high-resolution feature maps. Folding
28x28x1 into 14x14x4 (pixel unshuffle) loses nothing and costs a quarter per layer, which buys width instead.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unistep.networks.adm import UNet, UNetConfig


@dataclass(frozen=True)
class PatchedUNetConfig(UNetConfig):
    """A `UNet` behind a fold; `sample_size`, `in_channels` and `out_channels` are those of the image.

    Args:
        patch_size: pixels of a side folded into channels; 1 is the plain `UNet`.
    """

    patch_size: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size < 1:
            raise ValueError(f"patch_size: {self.patch_size} is not at least 1")
        if self.sample_size is not None:
            multiple = self.patch_size * 2 ** (len(self.block_out_channels) - 1)
            if self.sample_size % multiple:
                raise ValueError(
                    f"sample_size {self.sample_size} is not a multiple of {multiple} "
                    f"(patch_size {self.patch_size}, {len(self.block_out_channels)} resolutions)"
                )

    def inner(self) -> UNetConfig:
        """The config of the network that sees folded images."""
        own = {f.name: getattr(self, f.name) for f in fields(UNetConfig)}
        p = self.patch_size
        own["sample_size"] = self.sample_size // p if self.sample_size else None
        own["in_channels"] *= p * p
        own["out_channels"] *= p * p
        return UNetConfig(**own)


class PatchedUNet(nn.Module):
    """`UNet` on pixel-unshuffled images; called as a `UNet`.

    H and W must be multiples of `patch_size` * 2^(resolutions - 1).

    Raises:
        ValueError: an image size that is no such multiple; labels as for `UNet`.
    """

    def __init__(self, config: PatchedUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.inner())

    def cast_blocks(self, dtype: torch.dtype) -> "PatchedUNet":
        """As `UNet.cast_blocks`."""
        self.unet.cast_blocks(dtype)
        return self

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        c_noise: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D H W"]:
        p = self.config.patch_size
        if x.shape[2] % p or x.shape[3] % p:
            raise ValueError(f"images of {x.shape[2]}x{x.shape[3]} pixels do not fold into patches of {p}x{p}")
        h = self.unet(F.pixel_unshuffle(x, p), c_noise, class_labels, generator=generator)
        return F.pixel_shuffle(h, p)
