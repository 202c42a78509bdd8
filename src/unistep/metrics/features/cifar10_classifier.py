"""A classifier of CIFAR-10, which tells whether a class-conditional model drew the class that was asked for.

It was trained on the 50,000 training images alone (`scripts/train_cifar10_classifier.py`), apart from every model that
it judges. The network is one of the short residual networks that reach 94% within minutes (after Page 2018, "How to
train your ResNet"): a convolution, then three stages that halve the image. 2.3 million parameters, 0.28 billion
multiply-adds an image.
"""

from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.formats.published.file import expanded, sha256_of
from unistep.formats.tensor_file import read_tensors
from unistep.metrics.features.classifier import ImageClassifier

SIZE = 32
NUM_CLASSES = 10
FEATURE_DIM = 256
WEIGHTS_FILE = "cifar10_classifier.safetensors"
WEIGHTS_SHA256 = "a378fa8f16ba017d5a507a4302deb79980ed1745cb4a3de7e89bb6fd1aaaf416"
_STEM = 64
_STAGES = ((128, 1), (256, 1), (FEATURE_DIM, 1))  # width, and convolutions with a bypass
# Of the training images' pixels, in [-1, 1].
MEAN = (-0.0171, -0.0355, -0.1063)
STD = (0.4609, 0.4524, 0.4818)


class CIFAR10Classifier(ImageClassifier):
    """Seven 3x3 convolutions and a linear head."""

    title = "CIFAR-10"
    shape = (3, SIZE, SIZE)
    feature_dim = FEATURE_DIM
    num_classes = NUM_CLASSES
    batch_size = 250

    _mean: Tensor
    _std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_Conv(3, _STEM)]
        before = _STEM
        for width, bypassed in _STAGES:
            layers += [_Conv(before, width, pool=True), *(_Bypass(_Conv(width, width)) for _ in range(bypassed))]
            before = width
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURE_DIM, NUM_CLASSES)
        self.register_buffer("_mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, x: Float[Tensor, "B 3 32 32"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B K"]]:
        """Returns features and logits of images x in [-1, 1]."""
        features = self.trunk((x - self._mean) / self._std).mean(dim=(2, 3))
        return features, self.head(features)

    def evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features and logits of images in [-1, 1], each the mean over an image and its mirror image."""
        features, logits = super().evaluate(torch.cat([x, x.flip(-1)]))
        return features.float().view(2, len(x), -1).mean(dim=0), logits.float().view(2, len(x), -1).mean(dim=0)


class _Conv(nn.Module):
    """A 3x3 convolution, halved by the largest of 2x2 where `pool`, normalised, and GELU."""

    def __init__(self, c_in: int, c_out: int, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(c_out)
        self._pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.gelu(self.norm(F.max_pool2d(x, 2) if self._pool else x))


class _Bypass(nn.Module):
    """A layer whose output is added to its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


def load_cifar10_classifier(
    path: str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[CIFAR10Classifier, str]:
    """Returns a trained classifier, in eval mode and without gradients, and the SHA-256 of its weights.

    Args:
        path: weights of `scripts/train_cifar10_classifier.py`; None takes those in the package.
        device: device of the classifier.

    Raises:
        UserError: the file is missing, damaged, or of another network.
    """
    if path is None:
        file, remedy = Path(str(resources.files("unistep.metrics").joinpath(WEIGHTS_FILE))), "reinstall unistep"
    else:
        file, remedy = expanded(path), "scripts/train_cifar10_classifier.py makes the weights"
    check_regular_file(file, remedy)
    digest = sha256_of(file)
    if path is None and digest != WEIGHTS_SHA256:
        raise UserError(f"{file}: the sha256 is not that of the published CIFAR-10 classifier", remedy)
    model = CIFAR10Classifier()
    shapes = {name: value.shape for name, value in model.state_dict().items() if value.is_floating_point()}
    state = read_tensors(file, list(shapes), remedy)
    for name, shape in shapes.items():
        if state[name].shape != shape:
            raise UserError(f"{file}: tensor {name} is {list(state[name].shape)}, not {list(shape)}", remedy)
    model.load_state_dict(state, strict=False)  # num_batches_tracked is left out
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (missing in torch's overloads)
    return model.to(device).requires_grad_(False).eval(), digest
