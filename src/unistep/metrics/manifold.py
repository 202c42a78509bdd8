"""Precision and recall of generated images, by nearest neighbours in feature space.

Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing generative models", eqs. 1-3. A set of
features stands for its manifold: the union of the balls around every vector, each reaching to the k-th nearest other
vector of the same set. Precision is the share of samples inside the manifold of the reference (are they realistic?),
recall the share of the reference inside the manifold of the samples (is everything covered?).

Both depend on the sizes of the sets, so compare only figures taken at equal counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from unistep.errors import UserError


@dataclass(frozen=True)
class PrecisionRecall:
    """Both in [0, 1], higher is better."""

    precision: float
    recall: float


def _squared_distances(
    a: Float64[Tensor, "N D"], b: Float64[Tensor, "M D"], rows: int
) -> Iterator[tuple[int, Float64[Tensor, "R M"]]]:
    """Squared distances of `rows` rows of a at a time to all of b, each block with its first row."""
    b_norms = b.square().sum(dim=1)
    for start in range(0, len(a), rows):
        part = a[start : start + rows]
        block = part.square().sum(dim=1, keepdim=True) + b_norms - 2 * part @ b.T
        # Nearly equal vectors cancel to a tiny number of either sign.
        yield start, block.clamp_(min=0)


def squared_radii(features: Float64[Tensor, "N D"], k: int = 3, *, rows: int = 1000) -> Float64[Tensor, "N"]:
    """The squared distance of each vector to its k-th nearest other vector."""
    radii = features.new_empty(len(features))
    for start, block in _squared_distances(features, features, rows):
        own = torch.arange(len(block))
        block[own, start + own] = float("inf")
        radii[start : start + len(block)] = block.kthvalue(k, dim=1).values
    return radii


def inside_manifold(
    points: Float64[Tensor, "N D"],
    features: Float64[Tensor, "M D"],
    radii_squared: Float64[Tensor, "M"],
    *,
    rows: int = 1000,
) -> Bool[Tensor, "N"]:
    """Whether each point lies in the ball of at least one of the features."""
    inside = torch.empty(len(points), dtype=torch.bool)
    for start, block in _squared_distances(points, features, rows):
        inside[start : start + len(block)] = (block <= radii_squared).any(dim=1)
    return inside


def precision_recall(
    reference: Float[Tensor, "N D"], samples: Float[Tensor, "M E"], k: int = 3, *, rows: int = 1000
) -> PrecisionRecall:
    """Precision and recall of the samples against the reference, both given as features.

    `rows` bounds the memory: a block of rows x max(N, M) float64 distances is held at a time. Raises UserError where a
    set has no k-th neighbour or D and E differ.
    """
    if reference.shape[1] != samples.shape[1]:
        raise UserError(
            f"reference and samples have {reference.shape[1]} and {samples.shape[1]} features; "
            "take both from the same feature network"
        )
    fewest = min(len(reference), len(samples))
    if k < 1 or fewest <= k:
        raise UserError(f"precision and recall with k = {k} need 1 <= k < {fewest}, the size of the smaller set")
    reference, samples = reference.to("cpu", torch.float64), samples.to("cpu", torch.float64)
    # Distances do not change, but small numbers lose less in |a|^2 + |b|^2 - 2ab.
    centre = reference.mean(dim=0)
    reference, samples = reference - centre, samples - centre
    inside_reference = inside_manifold(samples, reference, squared_radii(reference, k, rows=rows), rows=rows)
    inside_samples = inside_manifold(reference, samples, squared_radii(samples, k, rows=rows), rows=rows)
    return PrecisionRecall(inside_reference.double().mean().item(), inside_samples.double().mean().item())
