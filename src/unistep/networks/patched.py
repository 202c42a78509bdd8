"""A U-Net on folded images: `p x p` pixels become channels, the network works at 1/p of the resolution.

Small grey images spend most of a pixel-space U-Net's time on narrow, high-resolution feature maps. Folding
28x28x1 into 14x14x4 (pixel unshuffle) loses nothing and costs a quarter per layer, which buys width instead.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unistep.networks.adm import UNet
from unistep.networks.patched_config import PatchedUNetConfig


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
