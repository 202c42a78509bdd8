"""Distances between feature vectors."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from unistep.errors import UserError


def squared_distances(a: Float64[Tensor, "N D"], b: Float64[Tensor, "M D"]) -> Float64[Tensor, "N M"]:
    """Returns all squared distances between two sets of vectors.

    By |a|^2 + |b|^2 - 2ab: they are never negative, but between equal vectors the round-off of the norms.

    Args:
        a, b: vectors.
    """
    block = torch.addmm(b.square().sum(dim=1).expand(len(a), -1), a, b.T, alpha=-2)
    return block.add_(a.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def check_finite(features: Float[Tensor, "N D"], name: str, rows: int = 2000) -> None:
    """Passes where all features are finite.

    Args:
        features: vectors.
        name: name of the vectors in the message.
        rows: number of vectors looked at once.

    Raises:
        UserError: a feature is NaN or infinite.
    """
    if bad := sum(int((~part.isfinite()).any(dim=1).sum()) for part in features.split(rows)):
        raise UserError(
            f"{bad} of the {len(features)} feature vectors of the {name} are not finite; "
            "check the images and the feature network"
        )
