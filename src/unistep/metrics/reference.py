"""What samples are compared with."""

from dataclasses import dataclass
from typing import Any

from unistep.errors import UserError
from unistep.metrics.features.protocol import FeatureInfo
from unistep.metrics.sources import ImageSource
from unistep.metrics.statistics import Statistics


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: images, statistics of them, or both, as in OpenAI's files."""

    name: str
    images: ImageSource | None = None
    statistics: Statistics | None = None

    def statistics_for(self, info: FeatureInfo) -> Statistics | None:
        """The statistics, where they are of this network; None where the images have to be looked at.

        Raises:
            UserError: they are of another network, and there are no images.
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

    def describe(self) -> dict[str, Any]:
        """As JSON takes it."""
        found = {} if self.images is None else self.images.describe()
        if self.statistics is not None:
            found = {"kind": "statistics", "name": self.name, "statistics": self.statistics.about} | found
        return found


def check_alike(name: str, shape: tuple[int, int, int], reference: Reference | None) -> None:
    """Refuses a reference of other images than are measured: the two would be brought differently to the network.

    Args:
        name: of what is measured.
        shape: channels, height, width of its images.
        reference: what it is to be compared with.

    Raises:
        UserError: their sizes or channels differ.
    """
    if reference is None or reference.images is None or reference.images.shape == shape:
        return
    (channels, height, width), (other, *size) = shape, reference.images.shape
    remedy = f"bring it to that with --resolution {height} --channels {channels}"
    if height != width:
        remedy = "take a reference of that size"
    raise UserError(
        f"{name} has images of {width}x{height}x{channels}, {reference.name} of {size[1]}x{size[0]}x{other}: {remedy}"
    )
