"""Tables of what a search can optimise.

Schedules of samplers are searched by the metrics of `unistep.metrics.table`, noise levels of edits by the
full-reference metrics here. A further one of these is a row here and a function that opens it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unistep.metrics.metric import Better, Metric
from unistep.metrics.table import METRICS


@dataclass(frozen=True)
class FullReferenceRow:
    """One full-reference metric.

    Args:
        name: name that asks for it.
        text: description of one line.
        better: direction of improvement.
        opener: place of the function below `unistep.searching` that takes `Resources` and returns a
            `FullReferenceMetric`, as "full_reference.psnr".
    """

    name: str
    text: str
    better: Better
    opener: str


FULL_REFERENCE_METRICS: dict[str, FullReferenceRow] = {
    row.name: row
    for row in (
        FullReferenceRow("psnr", "peak signal-to-noise ratio in dB", "higher", "full_reference.psnr"),
        FullReferenceRow("lpips", "learned perceptual distance", "lower", "full_reference.lpips"),
        FullReferenceRow("class", "share of results of the same class", "higher", "full_reference.class_agreement"),
    )
}
"""Metrics that compare each result with the image that it should be, by name; the first is the default."""

SAMPLE_METRICS: dict[str, Metric] = {row.name: row for row in METRICS.values() if row.searchable}
"""Metrics that compare all samples with a reference, by name; the first is the default."""

if TYPE_CHECKING:
    SearchMetricName = str
else:
    SearchMetricName = Literal[*SAMPLE_METRICS, *FULL_REFERENCE_METRICS]
