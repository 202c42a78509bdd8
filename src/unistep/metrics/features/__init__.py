"""Networks that turn images into the features that distances are measured on."""

from unistep.metrics.features.protocol import FeatureInfo, FeatureNetwork, Kind

__all__ = ["FeatureInfo", "FeatureNetwork", "Kind"]
