"""A U-Net on folded images: `p x p` pixels become channels, the network works at 1/p of the resolution.

On small grey images a U-Net in pixel space spends most of its time on narrow feature maps of high resolution. Folding
28x28x1 into 14x14x4 (pixel unshuffle) loses nothing and divides the cost of a layer by four, which allows more width.
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

    def blocks(self) -> list[nn.Module]:
        """The blocks of the U-Net."""
        return self.unet.blocks()

    def cast_blocks(self, dtype: torch.dtype) -> "PatchedUNet":
        """Casts all but embeddings, first convolution and output head, in place; see `UNet.cast_blocks`."""
        self.unet.cast_blocks(dtype)
        return self

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        c_noise: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        *,
        generator: torch.Generator | None = None,
        **further: Float[Tensor, " B"],
    ) -> Float[Tensor, "B D H W"]:
        p = self.config.patch_size
        if x.shape[2] % p or x.shape[3] % p:
            raise ValueError(f"images of {x.shape[2]}x{x.shape[3]} pixels do not fold into patches of {p}x{p}")
        h = self.unet(F.pixel_unshuffle(x, p), c_noise, class_labels, generator=generator, **further)
        return F.pixel_shuffle(h, p)

    def embed(
        self,
        c_noise: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None,
        **further: Float[Tensor, " B"],
    ) -> Float[Tensor, "B E"]:
        """All inputs but the image as one vector an image; see `UNet.embed`."""
        return self.unet.embed(c_noise, class_labels, **further)

    def trunk(
        self, x: Float[Tensor, "B C H W"], emb: Float[Tensor, "B E"], generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """The features of the folded images; see `UNet.trunk`."""
        p = self.config.patch_size
        return self.unet.trunk(F.pixel_unshuffle(x, p), emb, generator)

    def head(self, features: tuple[Tensor, ...]) -> Float[Tensor, "B D H W"]:
        """The output of the network, unfolded; see `UNet.head`."""
        return F.pixel_shuffle(self.unet.head(features), self.config.patch_size)
