"""Features of the CIFAR-10 classifier; see `unistep.metrics.features.cifar10_classifier`."""

from collections.abc import Collection
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.features.cifar10_classifier import FEATURE_DIM, NUM_CLASSES, SIZE, load_cifar10_classifier
from unistep.metrics.features.exact import exact_convolutions
from unistep.metrics.features.info import FeatureInfo, Kind
from unistep.metrics.features.request import check_kinds


class CIFAR10:
    """Features of colour images of 32x32 pixels: 256 "pool", 10 "probabilities" in the order of CIFAR-10's classes.

    Args:
        path: weights of `scripts/train_cifar10_classifier.py`; None takes those in the package.
        device: device to compute on.

    Raises:
        UserError: the file is missing, damaged, or of another network.
    """

    def __init__(self, path: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        self._device = torch.device(device)
        self._classifier, digest = load_cifar10_classifier(path, self._device)
        self.info = FeatureInfo(
            name="cifar10",
            label="CIFAR10",
            digest=digest,
            resize="none",
            dims={"pool": FEATURE_DIM, "probabilities": NUM_CLASSES},
            channels=3,
            classifies=True,
        )

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "B C H W"], kinds: Collection[Kind]) -> dict[Kind, Float32[Tensor, "B _"]]:
        """Returns the features; see `FeatureNetwork`."""
        check_kinds(self.info, kinds)
        channels, height, width = images.shape[1:]
        if (channels, height, width) != (3, SIZE, SIZE):
            raise UserError(
                f"cifar10 takes colour images of {SIZE}x{SIZE} pixels, these have {channels} channels of "
                f"{height}x{width}; use another network"
            )
        with exact_convolutions(self._device):
            pool, logits = self._classifier.features_and_logits(images)
        found: dict[Kind, Tensor] = {"pool": pool, "probabilities": logits.softmax(dim=1)}
        return {kind: found[kind] for kind in kinds}
