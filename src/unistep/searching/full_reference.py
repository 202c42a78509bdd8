"""Metrics that compare each result with the image that it should be; a search optimises their mean.

psnr    peak signal-to-noise ratio, 10 log10(255^2 / MSE) in dB, at most 78
lpips   learned perceptual distance (Zhang et al. 2018), see `unistep.networks.lpips`
class   share of results that a classifier assigns to the class of the image
"""

import hashlib
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from unistep.metrics.metric import Better
from unistep.searching.metric import GROUPS, jackknife
from unistep.searching.table import FULL_REFERENCE_METRICS

_BATCH = 32  # images whose features are in memory at once

Compare = Callable[[UInt8[Tensor, "N C H W"], UInt8[Tensor, "N C H W"]], Float32[Tensor, " N"]]


def _no_network() -> FeatureNetwork:
    raise UserError("this metric needs a feature network; give `features`")


@dataclass(frozen=True)
class Resources:
    """Device, feature network and files of weights that full-reference metrics take.

    Args:
        device: device to compute on.
        features: function that opens the feature network.
        lpips_vgg: file of VGG's weights for LPIPS; None downloads it.
        lpips_heads: file of the heads' weights for LPIPS; None downloads it.
    """

    device: torch.device | str = "cpu"
    features: Callable[[], FeatureNetwork] = _no_network
    lpips_vgg: str | None = None
    lpips_heads: str | None = None


@dataclass(frozen=True)
class FullReferenceMetric:
    """A metric of pairs of images; see `unistep.searching.scores.ScoreMetric`.

    Args:
        title: title of the number.
        better: direction of improvement.
        digest: SHA-256, in hexadecimal, of everything that a number depends on beside the images.
        compare: function from results and the images that they should be to one number a pair.
        least, most: bounds of the number.
    """

    title: str
    better: Better
    digest: str
    compare: Compare
    least: float = 0.0
    most: float = math.inf

    def value(self, features: Float32[Tensor, "N 1"], /) -> float:
        """Returns the mean."""
        return features.double().mean().item()

    def without_groups(self, features: Float32[Tensor, "N 1"]) -> tuple[float, ...]:
        """Returns the means without each of the groups of images."""
        group = torch.arange(len(features)) % GROUPS
        return tuple(self.value(features[group != g]) for g in range(GROUPS))

    def estimate(self, value: float, without: Sequence[float]) -> Estimate:
        """Returns the mean with its error."""
        return Estimate(value, jackknife(value, without).standard_error, self.least, self.most)


def open_full_reference(name: str, resources: Resources) -> FullReferenceMetric:
    """Opens a metric of `FULL_REFERENCE_METRICS`.

    Args:
        name: name of the row.
        resources: device, feature network and files of weights.

    Raises:
        UserError: the weights cannot be had, or the feature network is no classifier.
    """
    module, _, function = FULL_REFERENCE_METRICS[name].opener.rpartition(".")
    return getattr(importlib.import_module(f"unistep.searching.{module}"), function)(resources)


def psnr(resources: Resources) -> FullReferenceMetric:
    """Opens the peak signal-to-noise ratio."""

    def compare(made: Tensor, true: Tensor) -> Tensor:
        return pixels.psnr(made, true).float()

    return FullReferenceMetric("PSNR in dB", "higher", _sha256("psnr"), compare, -math.inf)


def lpips(resources: Resources) -> FullReferenceMetric:
    """Opens the learned perceptual distance.

    Raises:
        UserError: the weights cannot be had.
    """
    try:
        network = load_lpips(resources.lpips_vgg, resources.lpips_heads)
    except UserError as error:  # which names keys of a recipe
        raise UserError(str(error).replace("`lpips.", "`lpips_")) from None
    digest = hashlib.sha256(b"lpips")
    for tensor in network.state_dict().values():
        digest.update(tensor.contiguous().numpy().data)
    network = network.to(resources.device)

    def compare(made: Tensor, true: Tensor) -> Tensor:
        pairs = zip(made.split(_BATCH), true.split(_BATCH), strict=True)
        with torch.no_grad():
            parts = [network(*(to_float(images.to(resources.device)) for images in pair)).cpu() for pair in pairs]
        return torch.cat(parts)

    return FullReferenceMetric("LPIPS", "lower", digest.hexdigest(), compare)


def class_agreement(resources: Resources) -> FullReferenceMetric:
    """Opens the share of results that a classifier assigns to the class of the image.

    Raises:
        UserError: the feature network is no classifier.
    """
    network = resources.features()
    info = network.info
    if "probabilities" not in info.dims:
        raise UserError(f"class needs a classifier, which {info.name} is not; choose other `features` or `metric`")

    def classes(images: Tensor) -> Tensor:
        return features_of(images, network, ["probabilities"])["probabilities"].argmax(dim=1)

    def compare(made: Tensor, true: Tensor) -> Tensor:
        return (classes(made) == classes(true)).float()

    return FullReferenceMetric(f"same class ({info.label})", "higher", _sha256(f"class {info.key}"), compare, most=1)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
