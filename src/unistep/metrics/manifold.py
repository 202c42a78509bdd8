"""Precision, recall, density and coverage of generated images, by nearest neighbours in feature space.

A set of features stands for its manifold: the union of the balls around every vector, each reaching to the k-th nearest
other vector of the same set.

Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing generative models", eqs. 1-3:

    precision   share of the samples in at least one ball of the reference (are they realistic?)
    recall      share of the reference in at least one ball of the samples (is everything drawn?)

Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models", eqs. 3 and 4, which an outlier and
its wide ball disturb less:

    density     balls of the reference that a sample lies in, divided by k, mean over the samples; it may exceed 1
    coverage    share of the balls of the reference that hold at least one sample

The balls are closed in the first paper's code and open in the second's, and so they are here. All four depend on k and
on the sizes of the sets, so compare only figures taken at equal ones.

Standard errors are over draws of the samples, for the reference is given. For a fixed reference, precision and density
are means over independent samples. Recall and coverage are shares of the reference that are not independent: one sample
accounts for several vectors. The variance is the binomial one and, for every pair of vectors that are inside by the
same one sample alone, its covariance (the off-diagonal part of the Efron-Stein estimate; its diagonal part would be far
too large). On Gaussians of 4 to 64 dimensions the scatter of repeated draws is 0.85 to 1.1 times the error so found,
and was up to twice the binomial one. It is less where a share is nearly 0 or 1, and up to 1.4 times for recall, which
leaves out that a sample less widens the balls of its neighbours, where samples are few and dimensions many.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.distances import check_finite, squared_distances
from unistep.metrics.estimate import Estimate, proportion
from unistep.metrics.measurement import Features, Inputs, Measurement, spread

_K: dict[str, dict[str, int]] = {
    "precision": {"k": 3},
    "recall": {"k": 3},
    "density": {"density_k": 5},
    "coverage": {"density_k": 5},
}
_ROWS = 2000


def _compute(name: str, inputs: Inputs) -> Measurement:
    """The number of a name, with the number of the reference's vectors that it was computed with."""
    estimates, count = inputs.once(_together)
    return Measurement(estimates[name], {"reference_count": count})


def _value(name: str, samples: Float[Tensor, "N D"], reference: Features) -> float:
    """The number of a name alone, against all of the reference."""
    k = _K[name]
    found = _measure(reference.all(), samples, k=k.get("k"), density_k=k.get("density_k"), rows=_ROWS)
    return found[name].value


precision, precision_value = partial(_compute, "precision"), partial(_value, "precision")
recall, recall_value = partial(_compute, "recall"), partial(_value, "recall")
density, density_value = partial(_compute, "density"), partial(_value, "density")
coverage, coverage_value = partial(_compute, "coverage"), partial(_value, "coverage")


def _together(inputs: Inputs) -> tuple[dict[str, Estimate], int]:
    """All numbers of here that are asked for, from one pass over the distances, and the size of the reference.

    With many more vectors of one set than of the other, coverage depends on their numbers alone: of the reference no
    more are taken than there are samples.
    """
    chosen = spread(len(inputs.reference), len(inputs.samples))
    asked: dict[str, int] = {}
    for name in inputs.names:
        asked |= _K.get(name, {})
    estimates = _measure(
        inputs.reference.all()[chosen],
        inputs.samples.all(),
        k=asked.get("k"),
        density_k=asked.get("density_k"),
        rows=_ROWS,
        on_progress=partial(inputs.progress, "nearest neighbours"),
    )
    return estimates, len(chosen)


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of samples, both in [0, 1]; higher is better."""

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """Density and coverage of samples; higher is better.

    Args:
        density: number of at least 0, about 1 for samples of the reference's law.
        coverage: share in [0, 1].
    """

    density: float
    coverage: float


def precision_recall(
    reference: Float[Tensor, "N D"], samples: Float[Tensor, "M E"], k: int = 3, *, rows: int = _ROWS
) -> PrecisionRecall:
    """Returns precision and recall of samples against a reference.

    Args:
        reference: features of the reference.
        samples: features of the samples.
        k: number of the neighbour that a ball reaches to.
        rows: bound of the memory: rows x rows float64 distances are held at a time.

    Raises:
        UserError: a set has no k-th neighbour, the sets differ in dimension, or a feature is not finite.
    """
    found = _measure(reference, samples, k=k, rows=rows)
    return PrecisionRecall(found["precision"].value, found["recall"].value)


def density_coverage(
    reference: Float[Tensor, "N D"], samples: Float[Tensor, "M E"], k: int = 5, *, rows: int = _ROWS
) -> DensityCoverage:
    """Returns density and coverage of samples against a reference; see `precision_recall`."""
    found = _measure(reference, samples, density_k=k, rows=rows)
    return DensityCoverage(found["density"].value, found["coverage"].value)


def manifold_estimates(
    reference: Float[Tensor, "N D"],
    samples: Float[Tensor, "M E"],
    *,
    k: int = 3,
    density_k: int = 5,
    rows: int = _ROWS,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Estimate]:
    """Returns precision, recall, density and coverage by name; every distance is computed once for all four.

    Args:
        reference: features of the reference, in memory or memory-mapped, of any float type.
        samples: features of the samples, likewise.
        k: number of the neighbour that a ball reaches to, for precision and recall.
        density_k: the same for density and coverage.
        rows: bound of the memory: rows x rows float64 distances and 2 x rows vectors are held at a time.
        on_progress: called with the number of distances that are computed, and of all.

    Raises:
        UserError: see `precision_recall`.
    """
    return _measure(reference, samples, k=k, density_k=density_k, rows=rows, on_progress=on_progress)


class _Vectors:
    """Features around a centre, in float64, a few rows at a time."""

    def __init__(self, features: Float[Tensor, "N D"], centre: Float64[Tensor, "D"], rows: int) -> None:
        self._features, self._centre, self._rows = features, centre, rows

    def __len__(self) -> int:
        return len(self._features)

    def places(self, first: int = 0) -> Iterator[slice]:
        """Returns consecutive slices of the vectors from `first` on."""
        for start in range(first, len(self), self._rows):
            yield slice(start, min(start + self._rows, len(self)))

    def parts(self, first: int = 0) -> Iterator[tuple[slice, Float64[Tensor, "R D"]]]:
        """Returns the vectors of every place."""
        for place in self.places(first):
            # Distances do not change with the centre, but small numbers lose less in |a|^2 + |b|^2 - 2ab.
            yield place, self._features[place].to("cpu", torch.float64) - self._centre


def _mean(features: Float[Tensor, "N D"], rows: int) -> Float64[Tensor, "D"]:
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for part in features.split(rows):
        total += part.to("cpu", torch.float64).sum(dim=0)
    return total / len(features)


def nearest_squared(vectors: _Vectors, k: int, advance: Callable[[int], None]) -> Float64[Tensor, "N K"]:
    """Returns the squared distances of each vector to the k nearest others, ascending.

    Args:
        vectors: features.
        k: number of neighbours.
        advance: called with the number of distances that were computed.
    """
    best = torch.full((len(vectors), k), float("inf"), dtype=torch.float64)

    def keep(part: slice, block: Float64[Tensor, "_ _"], dim: int) -> None:
        values = block.topk(min(k, block.shape[dim]), dim=dim, largest=False).values
        values = values if dim == 1 else values.T
        best[part] = torch.cat([best[part], values], dim=1).topk(k, dim=1, largest=False).values

    for i, a in vectors.parts():
        # Every distance once: a block of other rows serves those as well.
        for j, b in vectors.parts(i.start):
            block = squared_distances(a, b)
            if i == j:
                block.fill_diagonal_(float("inf"))
            else:
                keep(j, block, dim=0)
            keep(i, block, dim=1)
            advance(block.numel())
    return best


def squared_radii(features: Float[Tensor, "N D"], k: int = 3, *, rows: int = _ROWS) -> Float64[Tensor, "N"]:
    """Returns the squared distance of each vector to its k-th nearest other vector.

    Args:
        features: vectors.
        k: number of the neighbour.
        rows: number of vectors held at a time.
    """
    vectors = _Vectors(features, _mean(features, rows), rows)
    return nearest_squared(vectors, k, lambda _: None)[:, k - 1]


class _Cover:
    """The number of samples that cover each vector of the reference, and the sample where it is only one."""

    def __init__(self, count: int) -> None:
        self._times = torch.zeros(count, dtype=torch.float64)
        self._by = torch.zeros(count, dtype=torch.float64)

    def update(self, samples: slice, reference: slice, covers: Float32[Tensor, "M N"]) -> None:
        self._times[reference] += covers.sum(dim=0)
        # The sum of the indices is the index where there is one; float32 is exact to 2^24.
        self._by[reference] += torch.arange(samples.start, samples.stop, dtype=torch.float32) @ covers

    def estimate(self, num_samples: int) -> Estimate:
        count, total = int((self._times > 0).sum()), len(self._times)
        binomial = proportion(count, total)
        # Vectors that would be lost with each sample; of n of them, n (n - 1) ordered pairs go together.
        lost = torch.bincount(self._by[self._times == 1].long(), minlength=num_samples).double()
        pairs = (lost * (lost - 1)).sum().item() - lost.sum().item() ** 2 / num_samples
        variance = binomial.standard_error**2 + max(pairs, 0.0) / total**2
        return Estimate(binomial.value, variance**0.5, 0.0, 1.0)


def _measure(
    reference: Float[Tensor, "N D"],
    samples: Float[Tensor, "M E"],
    *,
    k: int | None = None,
    density_k: int | None = None,
    rows: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Estimate]:
    """Precision and recall where k is given, density and coverage where density_k is."""
    _check(reference, samples, k, density_k)
    check_finite(reference, "reference", rows)
    check_finite(samples, "samples", rows)
    centre = _mean(reference, rows)
    real, drawn = _Vectors(reference, centre, rows), _Vectors(samples, centre, rows)

    advance = _counter(real, drawn, k is not None, on_progress)
    near = nearest_squared(real, max(k or 0, density_k or 0), advance)
    reach = nearest_squared(drawn, k, advance)[:, k - 1] if k else None  # the samples' own squared radii

    balls = torch.zeros(2, len(drawn), dtype=torch.float64)  # of the reference around each sample: with k, density_k
    recalled, covered = _Cover(len(real)), _Cover(len(real))
    for j, b in real.parts():
        for i, a in drawn.parts():
            block = squared_distances(a, b)
            inside = torch.empty(block.shape)  # of a float type, whose sums are quick
            if k and reach is not None:
                balls[0, i] += torch.le(block, near[j, k - 1], out=inside).sum(dim=1)
                recalled.update(i, j, torch.le(block, reach[i, None], out=inside))
            if density_k:
                balls[1, i] += torch.lt(block, near[j, density_k - 1], out=inside).sum(dim=1)
                covered.update(i, j, inside)
            advance(block.numel())

    found = {}
    if k:
        found["precision"] = proportion(int((balls[0] > 0).sum()), len(drawn))
        found["recall"] = recalled.estimate(len(drawn))
    if density_k:
        density = balls[1] / density_k
        spread = density.std(correction=0).item() / len(drawn) ** 0.5
        found["density"] = Estimate(density.mean().item(), spread, least=0.0)
        found["coverage"] = covered.estimate(len(drawn))
    return found


def _check(
    reference: Float[Tensor, "N D"], samples: Float[Tensor, "M E"], k: int | None, density_k: int | None
) -> None:
    if reference.shape[1] != samples.shape[1]:
        raise UserError(
            f"reference and samples have {reference.shape[1]} and {samples.shape[1]} features; "
            "take both from the same feature network"
        )
    fewest = min(len(reference), len(samples))
    for neighbours, what in ((k, "precision and recall"), (density_k, "density and coverage")):
        if neighbours is not None and not 1 <= neighbours < fewest:
            raise UserError(
                f"{what} with k = {neighbours} need 1 <= k < {fewest}, the size of the smaller set; give more images"
            )


def _counter(
    real: _Vectors, drawn: _Vectors, both: bool, on_progress: Callable[[int, int], None] | None
) -> Callable[[int], None]:
    """A function that adds up the distances computed and reports them; with `both` those among the samples too."""

    def within(vectors: _Vectors) -> int:
        return sum((i.stop - i.start) * (len(vectors) - i.start) for i in vectors.places())

    done = 0
    total = within(real) + (within(drawn) if both else 0) + len(real) * len(drawn)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if on_progress:
            on_progress(done, total)

    return advance
