"""Features of the bundled MNIST classifier; see `unistep.metrics.features.mnist_classifier`.

Digits of 28 pixels are taken as they are. MNIST is also used padded with black to 32, so that it can be halved more
often: of such images the central 28 pixels are taken, and the border is ignored.
"""

from collections.abc import Collection

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.features.info import FeatureInfo, Kind
from unistep.metrics.features.mnist_classifier import FEATURE_DIM, NUM_CLASSES, WEIGHTS_SHA256, load_mnist_classifier
from unistep.metrics.features.request import check_kinds

SIZE, PADDED_SIZE = 28, 32
"""Sizes of images, in pixels, that `MNIST` takes."""


class MNIST:
    """Features of grey digits of 28x28 or 32x32 pixels: 128 "pool", 10 "probabilities".

    Args:
        device: device to compute on.

    Raises:
        UserError: the weights in the package are missing or damaged.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._classifier = load_mnist_classifier(device)
        self.info = FeatureInfo(
            name="mnist",
            label="MNIST",
            digest=WEIGHTS_SHA256,
            resize="none",
            dims={"pool": FEATURE_DIM, "probabilities": NUM_CLASSES},
            channels=1,
            classifies=True,
        )

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "B C H W"], kinds: Collection[Kind]) -> dict[Kind, Float32[Tensor, "B _"]]:
        """Returns the features; see `FeatureNetwork`."""
        check_kinds(self.info, kinds)
        channels, height, width = images.shape[1:]
        if channels != 1 or (height, width) not in ((SIZE, SIZE), (PADDED_SIZE, PADDED_SIZE)):
            raise UserError(
                f"mnist takes grey images of {SIZE}x{SIZE} or {PADDED_SIZE}x{PADDED_SIZE} pixels, these have "
                f"{channels} channels of {height}x{width}; use another network"
            )
        border = (height - SIZE) // 2
        images = images[:, :, border : border + SIZE, border : border + SIZE]
        pool, logits = self._classifier.features_and_logits(images)
        found: dict[Kind, Tensor] = {"pool": pool, "probabilities": logits.softmax(dim=1)}
        return {kind: found[kind] for kind in kinds}
