"""LPIPS, a learned perceptual distance: the distance of two images in the features of a VGG16.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (arXiv 1801.03924), eq. 1,
in its version 0.1 for VGG16. With y^l the features after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, divided by
their length over the channels at every position, and w^l one weight a channel:

    d(a, b) = sum_l  mean_hw  sum_c  w^l_c (y^l_chw(a) - y^l_chw(b))^2

There are two of it in the literature, with the same weights. The original pools by the maximum. Consistency models
(Song et al. 2023, arXiv 2303.01469) were trained with the one of the package piq, `LPIPS(replace_pooling=True)`, whose
VGG16 pools by the average; it is the default here. Their numbers differ. Images below 256 pixels are resized to 224
before, as OpenAI's code does; from 256 up they are taken as they are.

The parameters have the names of the published files: `features.N.weight` and `features.N.bias` as torchvision counts
the layers of a VGG16, `lin0.model.1.weight` to `lin4.model.1.weight` as the authors' package has them.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unistep.errors import UserError

Pooling = Literal["average", "max"]

VGG16_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = (2, 2, 3, 3, 3)

# The mean and the deviation of ImageNet's colours, which are of images in [0, 1].
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_EPS = 1e-10


class LPIPS(nn.Module):
    """The distance of two batches of images; its weights are frozen, gradients go to the images.

    It computes in the dtype of its weights, fp32 unless it is cast, inside of autocast too: the features of two images
    that are nearly the same, as those of a pair in training are, differ by less than bf16 resolves.

    Args:
        pooling: "average", as consistency models were trained with, or "max", as the original.
        widths: channels of the five stages; others than those of VGG16 have no published weights.

    Raises:
        UserError: unknown pooling, or not five widths.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, pooling: Pooling = "average", *, widths: Sequence[int] = VGG16_WIDTHS) -> None:
        super().__init__()
        if pooling not in ("average", "max"):
            raise UserError(f"LPIPS has no pooling {pooling!r}; give average or max")
        if len(widths) != len(_CONVOLUTIONS):
            raise UserError(f"VGG16 has {len(_CONVOLUTIONS)} stages, and {len(widths)} widths were given")
        self.features = _vgg16(pooling, widths)
        self._taps = _taps(self.features)
        for index, width in enumerate(widths):
            # The original has a dropout for its training where the identity is: the names count it.
            head = nn.Module()
            head.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))
            self.add_module(f"lin{index}", head)
        # (x + 1) / 2 and the normalisation in one; not in the published files, hence not in the state dict.
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        self.register_buffer("shift", 2 * mean - 1, persistent=False)
        self.register_buffer("scale", 2 * std, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, a: Float[Tensor, "B C H W"], b: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """Returns the distance of every a to its b.

        Args:
            a, b: images in [-1, 1] of 3 channels, or of 1, grey. If only one of them needs gradients, no
                intermediate results of the other are kept.

        Returns:
            One number an image, 0 where both are equal; not negative with the published weights.

        Raises:
            UserError: images of other channels.
        """
        if a.shape[1] not in (1, 3):
            raise UserError(
                f"LPIPS takes images of 1 or 3 channels, and these have {a.shape[1]}; choose another distance"
            )
        with torch.autocast(a.device.type, enabled=False):
            distance = a.new_zeros(len(a), dtype=self.shift.dtype)
            for index, (y_a, y_b) in enumerate(zip(self._stages(a), self._stages(b), strict=True)):
                head = self.get_submodule(f"lin{index}.model.1")
                distance = distance + head((_unit(y_a) - _unit(y_b)).square()).mean((1, 2, 3))
        return distance

    def _stages(self, x: Tensor) -> list[Tensor]:
        """The features of images at the five taps."""
        x = x.to(self.shift.dtype)
        if min(x.shape[2:]) < 256:
            x = F.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False, antialias=False)
        x = (x.expand(-1, 3, -1, -1) - self.shift) / self.scale
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._taps:
                found.append(x)
        return found


def _vgg16(pooling: Pooling, widths: Sequence[int]) -> nn.Sequential:
    """The layers of a VGG16 up to relu5_3, counted as torchvision does."""
    layers: list[nn.Module] = []
    before = 3
    for width, convolutions in zip(widths, _CONVOLUTIONS, strict=True):
        if layers:
            layers.append(nn.AvgPool2d(2) if pooling == "average" else nn.MaxPool2d(2))
        for _ in range(convolutions):
            # Gradients need what comes out of a ReLU alone, so it may overwrite what goes in.
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
            before = width
    return nn.Sequential(*layers)


def _taps(features: nn.Sequential) -> frozenset[int]:
    """The indices of the last layer before every pooling, and of the last of all."""
    ends = [i for i, layer in enumerate(features) if isinstance(layer, nn.AvgPool2d | nn.MaxPool2d)]
    return frozenset(end - 1 for end in (*ends, len(features)))


def _unit(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Every position's features divided by their length; 0 where all are 0."""
    # The root has no derivative at 0, and would give NaN where a position has no feature at all.
    squared = features.square().sum(1, keepdim=True).clamp_min(torch.finfo(features.dtype).tiny)
    return features / (squared.sqrt() + _EPS)
