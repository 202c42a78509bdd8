"""Table of the metrics: names, titles, and the functions that compute them.

A metric is a row here and a file beside this one with its function (see `Metric.compute`). Evaluation, search, the
evaluation in training and what the command line offers follow from the rows; docs/evaluation.md shows them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from unistep.errors import UserError
from unistep.metrics.features.info import FeatureInfo
from unistep.metrics.metric import Metric
from unistep.text import nearest, shown

_ROWS = (
    Metric(
        "fd",
        "FD",
        text="Frechet distance, and its extrapolation to infinitely many samples",
        error="influence function over ten groups",
        better="lower",
        compute="frechet.compute",
        value="frechet.value",
        needs="moments",
        labelled=True,
        inception="FID",
        least=0,
    ),
    Metric(
        "sfd",
        "sFD",
        text="Frechet distance of spatial features, and its extrapolation",
        error="influence function over ten groups",
        better="lower",
        compute="frechet.compute",
        value="frechet.value",
        kind="spatial",
        needs="moments",
        labelled=True,
        inception="sFID",
        least=0,
    ),
    Metric(
        "kd",
        "KD",
        text="kernel distance, unbiased: for few samples",
        error="of the U-statistic",
        better="lower",
        compute="kernel.compute",
        labelled=True,
        inception="KID",
    ),
    Metric(
        "is",
        "IS",
        text="inception score",
        error="delta method",
        better="higher",
        compute="inception_score.compute",
        kind="probabilities",
        needs="nothing",
        labelled=True,
        least=1,
    ),
    Metric(
        "precision",
        "precision",
        text="share of the samples near reference images, k = 3",
        error="binomial",
        better="higher",
        compute="manifold.precision",
        value="manifold.precision_value",
        group="pr",
        least=0,
        most=1,
    ),
    Metric(
        "recall",
        "recall",
        text="share of the reference images near samples, k = 3",
        error="binomial and pairwise covariances",
        better="higher",
        compute="manifold.recall",
        value="manifold.recall_value",
        group="pr",
        least=0,
        most=1,
    ),
    Metric(
        "density",
        "density",
        text="number of reference images near a sample, divided by k = 5",
        error="of a mean",
        better="higher",
        compute="manifold.density",
        value="manifold.density_value",
        group="dc",
        least=0,
    ),
    Metric(
        "coverage",
        "coverage",
        text="share of the reference images with a sample near, k = 5",
        error="binomial and pairwise covariances",
        better="higher",
        compute="manifold.coverage",
        value="manifold.coverage_value",
        group="dc",
        least=0,
        most=1,
    ),
    Metric(
        "agreement",
        "agreement",
        text="share of the samples that the network, a classifier, assigns to the class asked for",
        error="binomial",
        better="higher",
        compute="agreement.compute",
        kind="probabilities",
        needs="nothing",
        default=False,
        searchable=False,
        classes=True,
        least=0,
        most=1,
    ),
    Metric(
        "copies",
        "copies among samples",
        text="shares of the samples that copy a reference image and that are near one, with a picture",
        error="binomial",
        better="lower",
        compute="neighbours.compute",
        group="nn",
        default=False,
        searchable=False,
    ),
)

METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}
"""All metrics by name."""

if TYPE_CHECKING:
    TrainingMetricName = str
else:
    # What may be minimised of few images: the model of the lowest number is kept.
    TrainingMetricName = Literal[*(row.name for row in _ROWS if row.better == "lower" and row.searchable)]


def need_classes(names: Sequence[str]) -> bool:
    """Whether one of the names is of a metric that needs the class of each sample."""
    return any(row.classes for row in _ROWS if {row.name, row.group} & set(names))


def choose_metrics(names: Sequence[str], info: FeatureInfo) -> list[Metric]:
    """Returns the metrics that names mean, each once.

    Args:
        names: names of metrics, of groups of them, or, with Inception's features, of their literature: fid, sfid, kid.
        info: identity of the feature network.

    Raises:
        UserError: a name is unknown or only for Inception's features, or the network lacks the features of a metric.
    """
    chosen: dict[str, Metric] = {}
    for name in names:
        for row in _meant(name, info):
            check_features(row, info)
            chosen.setdefault(row.name, row)
    if not chosen:
        raise UserError(f"`metrics` is empty; name some of {', '.join(METRICS)}")
    return list(chosen.values())


def _meant(name: str, info: FeatureInfo) -> list[Metric]:
    """The metrics that one name asks for."""
    if meant := [row for row in _ROWS if name and name in (row.name, row.group)]:
        return meant
    for row in _ROWS:
        if name and name == row.alias:
            if info.name == "inception":
                return [row]
            raise UserError(
                f"`metrics` {name} is computed from the features of inception, not of {info.name}; name {row.name} "
                "for theirs, or give `features` inception"
            )
    # A name with another first letter is no misspelling: frechet is not agreement.
    names = [known for row in _ROWS for known in (row.name, row.group, row.alias)]
    near = nearest(name, [known for known in names if known[:1] == name[:1].lower()])
    hint = f"did you mean {near}?" if near else f"choose from {', '.join(METRICS)}"
    raise UserError(f"`metrics` {shown(name) or repr('')} is unknown; {hint}")


def check_features(metric: Metric, info: FeatureInfo) -> None:
    """Passes where a network has the features of a metric.

    Raises:
        UserError: it lacks them.
    """
    if metric.kind not in info.dims:
        raise UserError(f"{metric.name} needs {metric.kind} features, which {info.name} lacks; choose another metric")
