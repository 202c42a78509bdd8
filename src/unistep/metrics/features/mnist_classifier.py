"""The MNIST classifier, whose features and labels measure generated digits.

Natural-image metrics do not fit digits: an ImageNet network has never seen a 28x28 grey stroke. The classifier was
trained on the 60,000 MNIST training images (`scripts/train_mnist_classifier.py`); its 128 penultimate features, the
last convolution averaged over space, take the place of Inception's pool3 in the Frechet distance (Heusel et al. 2017).
"""

import hashlib
from importlib import resources

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from unistep.errors import UserError

NUM_CLASSES = 10
FEATURE_DIM = 128
WEIGHTS_FILE = "mnist_classifier.safetensors"
WEIGHTS_SHA256 = "fc0ee45751c3578b42ea53b90c7d7c284f8effb37937d10b38565ba9ddde1beb"


class MNISTClassifier(nn.Module):
    """Five 3x3 convolutions and a linear head, 10 million multiply-adds an image."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 32, 48, 64, FEATURE_DIM)
        strides = (1, 2, 1, 2, 1)  # 28 -> 28 -> 14 -> 14 -> 7 -> 7
        layers: list[nn.Module] = []
        for c_in, c_out, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            conv = nn.Conv2d(c_in, c_out, kernel_size=3, stride=stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(c_out), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURE_DIM, NUM_CLASSES)

    def forward(self, x: Float[Tensor, "B 1 28 28"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B K"]]:
        """Returns features and logits of clean images x in [-1, 1]."""
        # Black must be 0 inside the network: zero padding then continues the background of a digit.
        features = self.trunk((x + 1) / 2).mean(dim=(2, 3))
        return features, self.head(features)

    @property
    def _device(self) -> torch.device:
        return self.head.weight.device

    @torch.no_grad()
    def features_and_logits(
        self, images: UInt8[Tensor, "N C H W"], batch_size: int = 500
    ) -> tuple[Float32[Tensor, "N D"], Float32[Tensor, "N K"]]:
        """Returns features [N, 128] and logits [N, 10] on the CPU, from one pass of the network.

        Args:
            images: digits [N, 1, 28, 28].
            batch_size: number of images computed at once.

        Raises:
            UserError: the images have another shape.
        """
        if images.shape[1:] != (1, 28, 28):
            raise UserError(
                f"the MNIST classifier takes images [N, 1, 28, 28], got {list(images.shape)}; "
                "use a model of 28x28 grey images"
            )
        features, logits = torch.empty(len(images), FEATURE_DIM), torch.empty(len(images), NUM_CLASSES)
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            x = images[part].to(self._device).float() / 127.5 - 1
            batch_features, batch_logits = self(x.contiguous(memory_format=torch.channels_last))
            features[part], logits[part] = batch_features.cpu(), batch_logits.cpu()
        return features, logits

    def features(self, images: UInt8[Tensor, "N 1 28 28"], batch_size: int = 500) -> Float32[Tensor, "N D"]:
        """Returns the penultimate features [N, 128] of uint8 images."""
        return self.features_and_logits(images, batch_size)[0]

    def logits(self, images: UInt8[Tensor, "N 1 28 28"], batch_size: int = 500) -> Float32[Tensor, "N K"]:
        """Returns the unnormalised class scores [N, 10] of uint8 images."""
        return self.features_and_logits(images, batch_size)[1]

    def predict(self, images: UInt8[Tensor, "N 1 28 28"], batch_size: int = 500) -> Int64[Tensor, "N"]:
        """Returns the most likely digit, 0 to 9, of each uint8 image."""
        return self.logits(images, batch_size).argmax(dim=1)


def load_mnist_classifier(device: str | torch.device = "cpu") -> MNISTClassifier:
    """Returns the trained classifier, in eval mode and without gradients; the weights are part of the package.

    Args:
        device: device of the classifier.

    Raises:
        UserError: the weight file is missing or is not the published one.
    """
    path = resources.files("unistep.metrics").joinpath(WEIGHTS_FILE)
    remedy = "reinstall unistep"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the MNIST classifier ({error.strerror}); {remedy}") from error
    if hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise UserError(f"{path}: the sha256 is not that of the published MNIST classifier; {remedy}")
    model = MNISTClassifier()
    model.load_state_dict(load_safetensors(data), strict=True)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing in torch's overloads)
    return model.to(device).requires_grad_(False).eval()
