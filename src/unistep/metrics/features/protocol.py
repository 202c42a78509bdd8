"""Interface of a feature network: uint8 images in, vectors out."""

from collections.abc import Collection
from typing import Protocol, runtime_checkable

from jaxtyping import Float32, UInt8
from torch import Tensor

from unistep.metrics.features.info import FeatureInfo, Kind


@runtime_checkable
class FeatureNetwork(Protocol):
    """A function of images, stateless, in eval mode and without gradients."""

    info: FeatureInfo

    def __call__(self, images: UInt8[Tensor, "B C H W"], kinds: Collection[Kind]) -> dict[Kind, Float32[Tensor, "B _"]]:
        """Returns the features of uint8 images on the CPU, those of all `kinds` in one pass where possible.

        Args:
            images: images of any size that the network takes.
            kinds: kinds of features that are wanted.

        Returns:
            The features [B, D] of each kind.

        Raises:
            UserError: the images are not of a size or number of channels that the network takes, or the network lacks
                a kind.
        """
        ...
