"""Metric of a search: one number of the features of samples, which the search optimises.

Its error, and that of the difference of two numbers of the same seeds, is a jackknife's over groups of images
(Quenouille 1956, Tukey 1958): the number is taken again without each group, v_1 ... v_G, and

    SE^2 = (G - 1)/G sum_g (v_g - mean)^2.

Image i belongs to group i mod G. Of two samplers that begin with the same noise the differences d_g = v_g - w_g are
used in place of v_g: what the noise does to both is no error of their difference.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from unistep.metrics.estimate import Estimate
from unistep.metrics.features.extract import extract
from unistep.metrics.features.info import Kind
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.metrics.measurement import Features, Inputs
from unistep.metrics.metric import Better, Metric, function_at
from unistep.metrics.reference import Reference, check_reference
from unistep.metrics.table import check_features

GROUPS = 10
_MOST_VECTORS = 10_000  # of the reference, where its vectors are needed


@dataclass(frozen=True)
class SearchMetric:
    """A metric with the reference that it compares with.

    Args:
        metric: row of the metric.
        title: title of the number.
        digest: SHA-256, in hexadecimal, of everything that a number depends on beside the samples.
        value: function from features [N, D] to the number.
    """

    metric: Metric
    title: str
    digest: str
    value: Callable[[Float32[Tensor, "N D"]], float]

    @property
    def kind(self) -> Kind:
        """Kind of features that it takes."""
        return self.metric.kind

    @property
    def better(self) -> Better:
        """Direction of improvement."""
        return self.metric.better

    def estimate(self, value: float, without: Sequence[float]) -> Estimate:
        """Returns a number with its error.

        Args:
            value: number of some features.
            without: numbers of the same features without each group, see `without_groups`.
        """
        return Estimate(value, jackknife(value, without).standard_error, self.metric.least, self.metric.most)

    def without_groups(self, features: Float32[Tensor, "N D"]) -> tuple[float, ...]:
        """Returns the numbers without each of the groups of images, for `jackknife`.

        Raises:
            UserError: there are so few images that a group is empty or none is left.
        """
        group = torch.arange(len(features)) % GROUPS
        return tuple(self.value(features[group != g]) for g in range(GROUPS))


def jackknife(value: float, without: Sequence[float]) -> Estimate:
    """Returns a number with its standard error.

    Args:
        value: number of all images.
        without: numbers without each of several groups of equal size.
    """
    mean = sum(without) / len(without)
    spread = sum((v - mean) ** 2 for v in without)
    return Estimate(value, math.sqrt((len(without) - 1) / len(without) * spread))


def open_search_metric(
    metric: Metric,
    network: FeatureNetwork,
    reference: Reference | None,
    feature_cache: Path,
    on_done: Callable[[int, int], None] | None = None,
) -> SearchMetric:
    """Extracts the features of the reference and returns the metric that compares with them.

    Args:
        metric: row of the metric.
        network: feature network.
        reference: images or statistics; None where the metric needs none.
        feature_cache: folder where the reference's features are kept.
        on_done: called with the number of images of the reference that are done, and of all.

    Raises:
        UserError: the network lacks the features of the metric, or the reference lacks what it needs.
    """
    info = network.info
    check_features(metric, info)
    check_reference(reference, metric, info)
    digest = hashlib.sha256(f"{metric.name} {info.key}".encode())
    features = Features()
    if metric.needs != "nothing" and reference is not None:
        features = _features(metric, network, reference, feature_cache, on_done)
        if metric.needs == "moments":
            moments = features.moments()
            tensors = (moments.mean, moments.covariance)
        else:
            tensors = (features.all(),)
        for tensor in tensors:
            digest.update(tensor.contiguous().numpy().data)
    title = metric.title_with(info)

    def value(samples: Float32[Tensor, "N D"]) -> float:
        if metric.value:
            return function_at(metric.value)(samples, features)
        inputs = Inputs(title, Features(samples), features, (metric.name,))
        return function_at(metric.compute)(inputs).estimate.value

    return SearchMetric(metric, title, digest.hexdigest(), value)


def _features(
    metric: Metric,
    network: FeatureNetwork,
    reference: Reference,
    feature_cache: Path,
    on_done: Callable[[int, int], None] | None,
) -> Features:
    """The features of the reference: moments where they do, else vectors, spread evenly where there are too many."""
    statistics = reference.statistics_for(network.info)
    if metric.needs == "moments" and statistics is not None and metric.kind in statistics.moments:
        return Features(moments=statistics.moments[metric.kind])
    images = reference.images
    assert images is not None  # `check_reference` has looked

    def report(done: int) -> None:
        if on_done is not None:
            on_done(done, images.count)

    entry = extract(images, network, [metric.kind], feature_cache, on_done=report)[metric.kind]
    if metric.needs == "moments":
        return Features(entry)
    vectors = entry.all()
    return Features(vectors[:: -(-len(vectors) // _MOST_VECTORS)])
