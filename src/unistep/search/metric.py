"""One measure as one number of the features of samples: what a search makes small.

Its error, and that of the difference of two numbers measured on the same seeds, is a jackknife's over groups of images
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
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float32
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.estimate import Estimate
from unistep.metrics.features.extract import extract
from unistep.metrics.features.protocol import FeatureInfo, FeatureNetwork, Kind
from unistep.metrics.frechet import frechet_distance
from unistep.metrics.inception_score import inception_score
from unistep.metrics.manifold import precision_recall
from unistep.metrics.measures import Better, title
from unistep.metrics.moments import StreamingMoments, moments

if TYPE_CHECKING:
    from unistep.metrics.reference import Reference

Metric = Literal["fd", "sfd", "kd", "is", "precision", "recall"]
METRICS: tuple[Metric, ...] = get_args(Metric)
GROUPS = 10
_RANGES: dict[Metric, tuple[float, float]] = {
    "fd": (0, math.inf),
    "sfd": (0, math.inf),
    "is": (1, math.inf),
    "precision": (0, 1),
    "recall": (0, 1),
}
_KINDS: dict[Metric, Kind] = {"sfd": "spatial", "is": "probabilities"}
_MOST_VECTORS = 10_000  # of the reference, where samples are compared with its vectors one by one


@dataclass(frozen=True)
class Yardstick:
    """A measure, and what it compares with.

    Args:
        metric: which.
        kind: of features that it takes.
        title: what its numbers are called.
        better: which way.
        digest: SHA-256, in hexadecimal, of all that a number depends on beside the samples.
        value: the number of features [N, D].
    """

    metric: Metric
    kind: Kind
    title: str
    better: Better
    digest: str
    value: Callable[[Float32[Tensor, "N D"]], float]

    def estimate(self, value: float, without: Sequence[float]) -> Estimate:
        """The number of some features and its error, given also the numbers `without_groups`."""
        least, most = _RANGES.get(self.metric, (-math.inf, math.inf))
        return Estimate(value, jackknife(value, without).standard_error, least, most)

    def without_groups(self, features: Float32[Tensor, "N D"]) -> tuple[float, ...]:
        """The number without each of the groups of images; for `jackknife`.

        Raises:
            UserError: there are so few images that a group is empty or none is left to measure.
        """
        group = torch.arange(len(features)) % GROUPS
        return tuple(self.value(features[group != g]) for g in range(GROUPS))


def jackknife(value: float, without: Sequence[float]) -> Estimate:
    """A number with its standard error, from what it is without each of several groups of equal size."""
    mean = sum(without) / len(without)
    spread = sum((v - mean) ** 2 for v in without)
    return Estimate(value, math.sqrt((len(without) - 1) / len(without) * spread))


def check_metric(metric: Metric, info: FeatureInfo, reference: "Reference | None") -> Kind:
    """The kind of features that a measure takes.

    Raises:
        UserError: the network does not give them, or the reference has not what it needs.
    """
    kind = _KINDS.get(metric, "pool")
    if kind not in info.dims:
        raise UserError(f"{metric} needs {kind} features, which {info.name} does not give; take another --metric")
    if metric == "is":
        return kind
    if reference is None:
        raise UserError(f"{metric} needs a reference: give --reference DATA")
    statistics = reference.statistics_for(info)
    moments_do = metric in ("fd", "sfd") and statistics is not None and kind in statistics.moments
    if reference.images is None and not moments_do:
        raise UserError(
            f"{metric} needs more than the statistics in {reference.name}; take --metric fd, or give the images"
        )
    return kind


def open_yardstick(
    metric: Metric,
    network: FeatureNetwork,
    reference: "Reference | None",
    feature_cache: Path,
    on_done: Callable[[int, int], None] | None = None,
) -> Yardstick:
    """Measures the reference, once, and returns what samples are held against.

    Args:
        metric: which.
        network: of features.
        reference: images or statistics; None for the inception score alone.
        feature_cache: where the reference's features are kept.
        on_done: told how many of the reference's images are done, and how many there are.

    Raises:
        UserError: see `check_metric`.
    """
    info = network.info
    kind = check_metric(metric, info, reference)
    name = title(metric, info)
    better: Better = "lower" if metric in ("fd", "sfd", "kd") else "higher"
    digest = hashlib.sha256(f"{metric} {info.key}".encode())
    if metric == "is":
        return Yardstick(metric, kind, name, better, digest.hexdigest(), lambda p: inception_score(p).mean)
    assert reference is not None  # `check_metric` has looked
    statistics = reference.statistics_for(info)
    if metric in ("fd", "sfd") and statistics is not None and kind in statistics.moments:
        known = statistics.moments[kind]
    else:
        images = reference.images
        assert images is not None

        def told(done: int) -> None:
            if on_done is not None:
                on_done(done, images.count)

        entry = extract(images, network, [kind], feature_cache, on_done=told)[kind]
        if metric not in ("fd", "sfd"):
            vectors = entry.all()
            vectors = vectors[:: -(-len(vectors) // _MOST_VECTORS)]
            digest.update(vectors.contiguous().numpy().data)
            return Yardstick(metric, kind, name, better, digest.hexdigest(), _of_vectors(metric, vectors))
        stream = StreamingMoments(entry.dim)
        for block in entry.blocks():
            stream.update(block)
        known = stream.result()
    for tensor in (known.mean, known.covariance):
        digest.update(tensor.contiguous().numpy().data)

    def distance(features: Float32[Tensor, "N D"]) -> float:
        ours = moments(features)
        return frechet_distance(ours.mean, ours.covariance, known.mean, known.covariance)

    return Yardstick(metric, kind, name, better, digest.hexdigest(), distance)


def _of_vectors(metric: Metric, reference: Float32[Tensor, "N D"]) -> Callable[[Float32[Tensor, "N D"]], float]:
    """The measures that look at the reference's vectors one by one."""
    if metric == "kd":
        from unistep.metrics.kernel import kernel_distance

        return lambda samples: kernel_distance(samples, reference).value
    if metric == "precision":
        return lambda samples: precision_recall(reference, samples).precision
    return lambda samples: precision_recall(reference, samples).recall
