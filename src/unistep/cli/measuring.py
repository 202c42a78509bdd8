"""The flags of measuring, of the commands that compare images with a reference, and what they mean."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unistep.cli.arguments import check_range

if TYPE_CHECKING:
    import torch

    from unistep.metrics.features.protocol import FeatureNetwork
    from unistep.metrics.reference import Reference


@dataclass(frozen=True)
class MeasuringConfig:
    """What images are compared with, and by which features.

    Args:
        reference: what to compare with: a folder, .zip, .npz, mnist or mnist-test, or an .npz of statistics.
        features: feature network: inception, dinov2, mnist, effnet-lite0 or onnx:FILE; default: mnist for grey images
            of 28 or 32 pixels, else inception.
        features_path: the network's weights, where they are not to be downloaded.
        resize: how images are brought to the network's input: legacy-tensorflow, clean; default: what the network's
            published numbers used.
        resolution: side in pixels to which images that are there are cropped and resized, those of the reference too;
            default: as they are.
        channels: 1 makes them grey, 3 colour; default: as they are.
        feature_cache: where features are kept; default: ~/.cache/unistep/features.
    """

    reference: str | None = None
    features: str | None = None
    features_path: str | None = None
    resize: Literal["legacy-tensorflow", "clean"] | None = None
    resolution: int | None = None
    channels: Literal[1, 3] | None = None
    feature_cache: str | None = None

    def __post_init__(self) -> None:
        check_range("--resolution", self.resolution, 1, 16384)

    @property
    def cache(self) -> Path:
        """The folder of the features."""
        from unistep.metrics.features.store import default_cache

        return default_cache() if self.feature_cache is None else Path(self.feature_cache).expanduser()


def open_network(
    config: MeasuringConfig, shape: tuple[int, int, int], device: "torch.device | str"
) -> "FeatureNetwork":
    """The feature network for images of `shape`.

    Raises:
        UserError: it cannot be had.
    """
    from unistep.metrics.features.table import default_features, open_features

    name = config.features or default_features(*shape)
    return open_features(name, device, path=config.features_path, resize=config.resize)


def reference_of(config: MeasuringConfig, skip_bad: bool = False) -> "Reference | None":
    """What samples are compared with; None where nothing is named.

    Raises:
        UserError: it is no dataset and no statistics, or damaged.
    """
    from unistep.workflows.image_sources import Preparation, open_reference

    if config.reference is None:
        return None
    return open_reference(config.reference, Preparation(config.resolution, config.channels, skip_bad))
