"""The MNIST classifier, whose features and labels measure generated digits.

Natural-image metrics do not fit digits: an ImageNet network has never seen a 28x28 grey stroke. The classifier was
trained on the 60,000 MNIST training images (`scripts/train_mnist_classifier.py`); its 128 penultimate features, the
last convolution averaged over space, take the place of Inception's pool3 in the Frechet distance (Heusel et al. 2017).
"""

import hashlib
from importlib import resources

import torch
from jaxtyping import Float
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from unistep.errors import UserError
from unistep.metrics.features.classifier import ImageClassifier

NUM_CLASSES = 10
FEATURE_DIM = 128
WEIGHTS_FILE = "mnist_classifier.safetensors"
WEIGHTS_SHA256 = "fc0ee45751c3578b42ea53b90c7d7c284f8effb37937d10b38565ba9ddde1beb"


class MNISTClassifier(ImageClassifier):
    """Five 3x3 convolutions and a linear head, 10 million multiply-adds an image."""

    title = "MNIST"
    shape = (1, 28, 28)
    feature_dim = FEATURE_DIM
    num_classes = NUM_CLASSES
    batch_size = 500

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
