"""Checks that feature networks of colour images make of every call."""

from collections.abc import Collection

from jaxtyping import UInt8
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.features.info import FeatureInfo, Kind


def check_kinds(info: FeatureInfo, kinds: Collection[Kind]) -> None:
    """Passes where the network has all the kinds.

    Raises:
        UserError: it lacks one.
    """
    if missing := [kind for kind in kinds if kind not in info.dims]:
        raise UserError(f"features {info.name} are {', '.join(info.dims)}; they have no {missing[0]}")


def as_rgb(info: FeatureInfo, images: UInt8[Tensor, "B C H W"]) -> UInt8[Tensor, "B 3 H W"]:
    """Returns images of three channels; grey ones are repeated.

    Raises:
        UserError: the images have neither 1 nor 3 channels.
    """
    if images.shape[1] not in (1, 3):
        raise UserError(f"features {info.name} are of images of 1 or 3 channels, and these have {images.shape[1]}")
    return images.expand(-1, 3, -1, -1)
