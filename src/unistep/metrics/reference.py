"""Reference that samples are compared with."""

from dataclasses import dataclass
from typing import Any

from unistep.errors import UserError
from unistep.metrics.features.info import FeatureInfo
from unistep.metrics.metric import Metric
from unistep.metrics.sources import ImageSource
from unistep.metrics.statistics import Statistics


@dataclass(frozen=True)
class Reference:
    """Images, statistics of their features, or both, as in OpenAI's files.

    Args:
        name: name in messages.
        images: images; None where there are statistics alone.
        statistics: statistics of the images' features; None where there are images alone.
    """

    name: str
    images: ImageSource | None = None
    statistics: Statistics | None = None

    def statistics_for(self, info: FeatureInfo) -> Statistics | None:
        """Returns the statistics of a network's features; None where they come from the images.

        Raises:
            UserError: the statistics are of another network, and there are no images.
        """
        if self.statistics is None:
            return None
        try:
            self.statistics.check(info)
        except UserError:
            if self.images is None:
                raise
            return None
        return self.statistics

    def provides(self, metric: Metric, info: FeatureInfo) -> bool:
        """Whether a metric can be computed with this reference.

        Raises:
            UserError: the statistics are of another network, and there are no images.
        """
        if metric.needs == "nothing" or self.images is not None:
            return True
        statistics = self.statistics_for(info)
        return metric.needs == "moments" and statistics is not None and metric.kind in statistics.moments

    def to_dict(self) -> dict[str, Any]:
        """Returns a description of the reference for reports, as JSON takes it."""
        found = {} if self.images is None else self.images.to_dict()
        if self.statistics is not None:
            found = {"kind": "statistics", "name": self.name, "statistics": self.statistics.about} | found
        return found


def check_reference(reference: Reference | None, metric: Metric, info: FeatureInfo) -> None:
    """Passes where a metric can be computed with a reference.

    Raises:
        UserError: the metric needs a reference and there is none, or statistics that lack what it needs.
    """
    if metric.needs == "nothing":
        return
    if reference is None:
        raise UserError(f"{metric.name} needs a `reference`; give a dataset or statistics")
    if reference.provides(metric, info):
        return
    if metric.needs == "moments":
        raise UserError(f"{reference.name} has no {metric.kind} statistics, which {metric.name} needs; give its images")
    raise UserError(
        f"{metric.name} needs the images of the reference, and {reference.name} holds statistics alone; leave it out, "
        "or give the images"
    )


def check_alike(name: str, shape: tuple[int, int, int], reference: Reference | None) -> None:
    """Passes where the images of the reference have the size and the channels of the samples.

    Others would be brought to the network's input in another way.

    Args:
        name: name of the samples in messages.
        shape: channels, height, width of the samples.
        reference: reference of the samples; None passes.

    Raises:
        UserError: their sizes or channels differ.
    """
    if reference is None or reference.images is None or reference.images.shape == shape:
        return
    (channels, height, width), (other, *size) = shape, reference.images.shape
    remedy = f"give `resolution` {height} and `channels` {channels} to convert it"
    if height != width:
        remedy = "take a reference of that size"
    raise UserError(
        f"{name} has images of {width}x{height}x{channels}, {reference.name} of {size[1]}x{size[0]}x{other}; {remedy}"
    )
