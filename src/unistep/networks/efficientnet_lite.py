"""EfficientNet-Lite0, a small classifier of ImageNet whose features discriminate natural images.

Tan and Le 2019, "EfficientNet" (arXiv 1905.11946), table 1, in the variant that Google published for phones: no
squeeze-and-excitation, ReLU6 in place of Swish. 4.7 million parameters, 0.4 billion multiply-adds an image.

It comes from TensorFlow, whose "SAME" padding of a strided convolution is one pixel less at the top and left than at
the bottom and right; batch normalisation adds 1e-3 to the variance.

The parameters have the names of the published file.

On a CPU memory is the other half of the cost. Activations of the first blocks have 5 MB an image, and the C library
gives blocks of more than 32 MB back to the system when they are freed: their pages are zeroed by the kernel anew each
time, which took as long as the arithmetic. So they are clamped in place, and the first blocks see few images at a time;
later ones, whose kernels are slower for few, see all. The features are the same, to the bit.
"""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIZE = 224
FEATURE_DIM = 1280
NUM_CLASSES = 1000
_STEM_WIDTH = 32
_EPS = 1e-3

# Blocks, kernel size, stride of the first block, expansion and width of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

# Number of the first blocks, whose activations are large, and of the images that a CPU brings through them at a time.
_EARLY, _FEW = 2, 2

# Convolutions and the normalisations that follow them.
_PAIRS = (
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)


class EfficientNetLite0(nn.Module):
    """A network from images of 224 pixels to features and logits of 1,000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv2d(3, _STEM_WIDTH, kernel_size=3, stride=2)
        self._bn0 = nn.BatchNorm2d(_STEM_WIDTH, _EPS)
        blocks, before = [], _STEM_WIDTH
        for repeats, kernel_size, stride, expansion, width in _STAGES:
            for i in range(repeats):
                blocks.append(_Block(before, width, kernel_size, stride if i == 0 else 1, expansion))
                before = width
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = _SameConv2d(before, FEATURE_DIM, kernel_size=1)
        self._bn1 = nn.BatchNorm2d(FEATURE_DIM, _EPS)
        self._fc = nn.Linear(FEATURE_DIM, NUM_CLASSES)

    def features(self, x: Float[Tensor, "B 3 224 224"]) -> Float[Tensor, "B D"]:
        """The last convolution averaged over space, [B, 1280], all in [0, 6], of (pixels - 127) / 128."""
        few = _FEW if x.device.type == "cpu" else len(x)
        x = torch.cat([self._early(part) for part in x.split(max(few, 1))])
        x = F.relu6(self._bn1(self._conv_head(self._blocks[_EARLY:](x))), inplace=True)
        return x.mean((2, 3))

    def _early(self, x: Tensor) -> Tensor:
        """The stem and the blocks that begin at its 112 pixels."""
        return self._blocks[:_EARLY](F.relu6(self._bn0(self._conv_stem(x)), inplace=True))

    def logits(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """The unnormalised class scores [B, 1000] of `features`."""
        return self._fc(features)

    def folded(self) -> "EfficientNetLite0":
        """The same function, up to round-off, with the normalisations multiplied into the convolutions before them.

        It is a third faster, and only for inference: the network must be in eval mode.
        """
        network = copy.deepcopy(self)
        for module in network.modules():
            for conv, norm in _PAIRS:
                if isinstance(getattr(module, conv, None), nn.Conv2d):
                    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                    setattr(module, norm, nn.Identity())
        return network

    def forward(self, x: Float[Tensor, "B 3 224 224"]) -> Float[Tensor, "B K"]:
        """The unnormalised class scores [B, 1000] of (pixels - 127) / 128."""
        return self.logits(self.features(x))


class _Block(nn.Module):
    """A convolution of every channel by itself between two that mix the channels, and a bypass where it fits."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = c_in * expansion
        self._expand_conv, self._bn0 = None, None
        if expansion != 1:
            self._expand_conv = _SameConv2d(c_in, width, kernel_size=1)
            self._bn0 = nn.BatchNorm2d(width, _EPS)
        self._depthwise_conv = _SameConv2d(width, width, kernel_size, stride, groups=width)
        self._bn1 = nn.BatchNorm2d(width, _EPS)
        self._project_conv = _SameConv2d(width, c_out, kernel_size=1)
        self._bn2 = nn.BatchNorm2d(c_out, _EPS)
        self._bypass = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        h = x
        if self._expand_conv is not None and self._bn0 is not None:
            h = F.relu6(self._bn0(self._expand_conv(h)), inplace=True)
        h = F.relu6(self._bn1(self._depthwise_conv(h)), inplace=True)
        h = self._bn2(self._project_conv(h))
        return x + h if self._bypass else h


class _SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does for even sizes."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        total = kernel_size - stride  # for strides of 1 and 2 and kernels of odd size
        super().__init__(c_in, c_out, kernel_size, stride, 0 if stride > 1 else total // 2, groups=groups, bias=False)
        self._before, self._after = (total // 2, total - total // 2) if stride > 1 else (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        if self._after:
            x = F.pad(x, (self._before, self._after, self._before, self._after))
        return super().forward(x)
