"""How like results are to the images that they should be: a number an image, of which a search makes the mean best.

psnr    peak signal-to-noise ratio, 10 log10(255^2 / MSE) in dB; that of equal images ends at 78 dB
lpips   a learned perceptual distance (Zhang et al. 2018), see `unistep.networks.lpips`
class   the share of results that a classifier takes for what it takes the image for
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from unistep.core import pixels
from unistep.core.pixels import to_float
from unistep.errors import UserError
from unistep.formats.published.lpips import load_lpips
from unistep.metrics.estimate import Estimate
from unistep.metrics.features.extract import features_of
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.metrics.measures import Better
from unistep.search.metric import GROUPS, jackknife

LikenessMetric = Literal["psnr", "lpips", "class"]
LIKENESSES: tuple[LikenessMetric, ...] = get_args(LikenessMetric)

_BATCH = 32  # images whose features are in memory at once

Compare = Callable[[UInt8[Tensor, "N C H W"], UInt8[Tensor, "N C H W"]], Float32[Tensor, " N"]]


@dataclass(frozen=True)
class Likeness:
    """A measure of pairs of images; see `unistep.search.scores.Measure`.

    Args:
        title: what its numbers are called.
        better: which way.
        digest: SHA-256, in hexadecimal, of all that a number depends on beside the images.
        compare: results and the images that they should be; one number a pair.
        least, most: what the number can be.
    """

    title: str
    better: Better
    digest: str
    compare: Compare
    least: float = 0.0
    most: float = math.inf

    def value(self, features: Float32[Tensor, "N 1"], /) -> float:
        """The mean."""
        return features.double().mean().item()

    def without_groups(self, features: Float32[Tensor, "N 1"]) -> tuple[float, ...]:
        """The mean without each of the groups of images."""
        group = torch.arange(len(features)) % GROUPS
        return tuple(self.value(features[group != g]) for g in range(GROUPS))

    def estimate(self, value: float, without: Sequence[float]) -> Estimate:
        """The mean and its error."""
        return Estimate(value, jackknife(value, without).standard_error, self.least, self.most)


def psnr() -> Likeness:
    """Peak signal-to-noise ratio."""

    def compare(made: Tensor, true: Tensor) -> Tensor:
        return pixels.psnr(made, true).float()

    return Likeness("PSNR in dB", "higher", _sha256("psnr"), compare, -math.inf)


def lpips(vgg: str | None = None, heads: str | None = None, device: torch.device | str = "cpu") -> Likeness:
    """The learned distance.

    Args:
        vgg, heads: files of its weights, see `unistep.formats.published.lpips`.
        device: where it is computed.

    Raises:
        UserError: the weights cannot be had.
    """
    network = load_lpips(vgg, heads)
    digest = hashlib.sha256(b"lpips")
    for tensor in network.state_dict().values():
        digest.update(tensor.contiguous().numpy().data)
    network = network.to(device)

    def compare(made: Tensor, true: Tensor) -> Tensor:
        pairs = zip(made.split(_BATCH), true.split(_BATCH), strict=True)
        with torch.no_grad():
            return torch.cat([network(to_float(a.to(device)), to_float(b.to(device))).cpu() for a, b in pairs])

    return Likeness("LPIPS", "lower", digest.hexdigest(), compare)


def class_agreement(network: FeatureNetwork) -> Likeness:
    """The share of results of the same class as the image, as a classifier sees both.

    Raises:
        UserError: the network is no classifier.
    """
    info = network.info
    if "probabilities" not in info.dims:
        raise UserError(f"class needs a classifier, which {info.name} is not; take another --features or --metric")

    def classes(images: Tensor) -> Tensor:
        return features_of(images, network, ["probabilities"])["probabilities"].argmax(dim=1)

    title = f"same class ({info.label})"
    compare: Compare = lambda made, true: (classes(made) == classes(true)).float()  # noqa: E731
    return Likeness(title, "higher", _sha256(f"class {info.key}"), compare, most=1)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
