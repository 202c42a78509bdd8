"""The pixels of small images, in which nearest neighbours and copies are measured without any network.

An image is 32 x 32 pixels in colour, 3,072 numbers in [0, 1]; others are resized, grey ones repeated. Distances of
pixels find copies, as in Gu et al. 2023, "On memorization in diffusion models"; for how good images are they tell
little: a shift by one pixel is as far as another object.
"""

import hashlib
from collections.abc import Collection

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from unistep.metrics.features.info import FeatureInfo, Kind
from unistep.metrics.features.request import as_rgb, check_kinds
from unistep.metrics.features.resize import clean

SIZE = 32
"""Side of the images that are taken as they are, in pixels."""


class Pixels:
    """Pixels in [0, 1] as features: 3072 "pool".

    Args:
        device: device of the images; the work is done on the CPU.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.info = FeatureInfo(
            name="pixels",
            label=f"pixels@{SIZE}",
            digest=hashlib.sha256(f"RGB in [0, 1] at {SIZE}x{SIZE}".encode()).hexdigest(),
            resize="clean",
            dims={"pool": 3 * SIZE * SIZE},
        )

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "B C H W"], kinds: Collection[Kind]) -> dict[Kind, Float32[Tensor, "B _"]]:
        """Returns the features; see `FeatureNetwork`."""
        check_kinds(self.info, kinds)
        images = as_rgb(self.info, images).cpu()
        whole = images.float() if images.shape[2:] == (SIZE, SIZE) else clean(images, SIZE)
        pool = (whole / 255).flatten(1).contiguous()
        return dict.fromkeys(kinds, pool)
