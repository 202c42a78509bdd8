"""DINOv2's class token, the feature of FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675).

ViT-L/14 without registers, 1024 features. Images enter at 224 pixels as ((x / 255) - mean) / std with ImageNet's
colours. Stein et al. and EDM2 (Karras et al. 2024) resize with the bicubic filter that widens where images become
smaller, which is the resize "clean" here. EDM2's figures are of floats as these are, but for rounding; Stein et al.
round the resized images to uint8.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from unistep.formats.published.dinov2 import load_dinov2
from unistep.metrics.features.exact import exact_convolutions
from unistep.metrics.features.info import FeatureInfo, Kind
from unistep.metrics.features.request import as_rgb, check_kinds
from unistep.metrics.features.resize import RESIZES, check_resize

SIZE = 224
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_LARGE = 1024


class DINOv2:
    """A `FeatureNetwork` with pool features.

    Args:
        path: file or folder with the weights, see `unistep.formats.published.dinov2`; None downloads ViT-L/14 once,
            1.13 GiB.
        device: device to compute on.
        resize: method of the resize, see `Resize`; "clean" is that of published figures.
        cache_dir: folder of the download; None is `unistep/features` in the user's cache.

    Raises:
        UserError: the resize is unknown, or the weights cannot be had or are of another network.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        device: str | torch.device = "cpu",
        resize: str = "clean",
        *,
        cache_dir: str | Path | None = None,
    ) -> None:
        chosen = check_resize(resize)
        network = load_dinov2(path, cache_dir=cache_dir)
        width = network.config.width
        self.info = FeatureInfo(
            name="dinov2",
            label="DINOv2" if width == _LARGE else f"DINOv2-{width}",
            digest=_digest(network),
            resize=chosen,
            dims={"pool": width},
        )
        self._device = torch.device(device)
        self._network = network.to(self._device)
        self._mean, self._std = (torch.tensor(v, device=self._device).view(3, 1, 1) for v in (_MEAN, _STD))

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "B C H W"], kinds: Collection[Kind]) -> dict[Kind, Float32[Tensor, "B _"]]:
        """Returns the features of uint8 images of 1 or 3 channels and of any size, on the CPU.

        Raises:
            UserError: images of other channels, an unknown kind, or a size that is not resized to 224 pixels.
        """
        check_kinds(self.info, kinds)
        x = RESIZES[self.info.resize](as_rgb(self.info, images.to(self._device)), SIZE)
        with exact_convolutions(self._device):
            pool = self._network((x / 255 - self._mean) / self._std)
        return {kind: pool.cpu() for kind in kinds}


def _digest(network: nn.Module) -> str:
    """The SHA-256 of the weights: the same for the Hub's file and the original one."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
