"""Frechet distance between two sets of features, from moments gathered in one pass, and how far it can be trusted.

Each set is summarised by a Gaussian. The squared 2-Wasserstein distance between the two Gaussians (Dowson and Landau
1982; Heusel et al. 2017, "GANs trained by a two time-scale update rule", eq. 6) is

    d = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^{1/2}).

With any factors S1 = F1 F1^T and S2 = F2 F2^T the last trace is the sum of the singular values of B = F2^T F1. Working
on B instead of S1 S2 keeps full precision where the covariances are nearly singular, which is the rule (2048 features
of a few thousand images), and no general matrix square root, with its complex round-off, is needed. Cholesky's factors
are the fastest; where a covariance is too near to singular for them, its eigenvectors are taken. Where B is not nearly
singular either, the eigenvalues of B^T B, which are found sooner, are exact enough.

The moments are merged in the way of Chan, Golub and LeVeque (1979), eqs. 2.1a-b, in float64: the centred sums of
squares of two parts A and B combine as

    M = M_A + M_B + delta delta^T n_A n_B / (n_A + n_B),    delta = mean_B - mean_A,

which never subtracts two large numbers, as E[x^2] - E[x]^2 does.

The standard error is that of the delta method. Another sample at x moves d by its influence

    phi(x) = 2 (mu1 - mu2)^T (x - mu1) + (x - mu1)^T A (x - mu1) - tr(A S1),    A = I - T,
    T = F1^{-T} (B^T B)^{1/2} F1^{-1},

T being the optimal transport from the first Gaussian to the second, and d varies over draws of n samples with the
variance Var(phi) / n. phi is linear in the moments, so its sums over groups of samples follow from the groups' moments,
and the variance from the spread of these sums, without a second look at the features.

d is biased upwards by c / n to first order (Chong and Forsyth 2020, "Effectively unbiased FID and inception score and
where to find them"): the sampling error of the moments is itself a distance. Two halves of the samples have twice the
bias of the whole, so 2 d(whole) - mean d(halves) is without it.

Beside the linear term there is a quadratic one, which prevails where the two laws agree. For a quadratic error Q, phi
overestimates Var(Q) by the factor 2 (as the jackknife does), and the extrapolation has just that 2 Var(Q), for it
replaces Q(e, e) by Q(e1, e2), of the errors of the two halves. So the same standard error is right for the extrapolated
distance; for the distance itself it is right where that is far above its bias, and up to sqrt(2) too large where not.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from unistep.core.random import image_seed
from unistep.errors import UserError
from unistep.metrics.estimate import Estimate

_GROUPS = 10
_STRIP = 512  # rows of the scatter held in one tensor, up to the diagonal: a symmetric matrix costs little over a half
_PENDING = 512  # vectors gathered before they are multiplied: fewer would pass over the whole scatter too often
_PRECISION = 1e-7  # of a sum of singular values, were all roundings to one side; in fact 1e-12 comes out


@dataclass(frozen=True)
class Moments:
    """Mean and unbiased covariance (divisor count - 1) of `count` feature vectors."""

    mean: Float64[Tensor, "D"]
    covariance: Float64[Tensor, "D D"]
    count: int


@dataclass(frozen=True)
class FrechetEstimate:
    """The Frechet distance of samples to a reference that is taken as exact.

    Args:
        distance: as FID reports it. Its standard error is up to sqrt(2) too large where the value is mostly bias.
        extrapolated: to endless samples; may be negative. Good where half the samples are several times `dim`, or
            where few of the features vary much.
        count: of the samples.
        dim: of the features.
        biased: whether there are no more samples than features: the distance then tells more of their number than of
            their quality, and both standard errors are rough.
    """

    distance: Estimate
    extrapolated: Estimate
    count: int
    dim: int
    biased: bool


def _checked(features: Float[Tensor, "N D"], dim: int) -> Float[Tensor, "N D"]:
    if features.shape[1] != dim:
        raise UserError(f"the feature vectors have {features.shape[1]} numbers, not {dim}; take one feature network")
    finite = features.isfinite()
    if not finite.all():
        bad = int((~finite.all(dim=1)).sum())
        raise UserError(
            f"{bad} of {len(features)} feature vectors hold NaN or infinite values; "
            "check the images and the feature network"
        )
    return features


class StreamingMoments:
    """Collects mean and covariance of features that arrive in batches; the order and the batch size do not matter.

    Parts gathered apart (in other processes, say) join through `merge`. The memory is that of D^2 / 2 numbers and
    somewhat more.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        # The centred sum of squares, M above: rows a to b of its lower triangle, each up to column b.
        self._scatter = [torch.zeros(b - a, b, dtype=torch.float64) for a, b in self._strips()]
        self._rows: Float64[Tensor, "R D"] | None = None  # the first `_pending` of them are not yet in the above
        self._pending = 0

    @property
    def count(self) -> int:
        """How many vectors were added."""
        return self._count + self._pending

    def update(self, features: Float[Tensor, "N D"]) -> None:
        """Add a batch of features, of any float type and on any device.

        Raises UserError where they hold NaN or infinite values, or are not of the dimension of the others.
        """
        self._add(_checked(features, self.dim))

    def merge(self, other: "StreamingMoments") -> None:
        """Add all that `other` has seen."""
        other._flush()
        self._flush()
        if other._count:
            delta, weight = self._shift(other._count, other._mean)
            for (a, b), mine, theirs in zip(self._strips(), self._scatter, other._scatter, strict=True):
                mine.add_(theirs).addr_(delta[a:b], delta[:b], alpha=weight)

    def result(self) -> Moments:
        """The moments so far. Raises UserError for fewer than two vectors: they have no covariance."""
        if self.count < 2:
            raise UserError(f"moments need at least 2 feature vectors, got {self.count}; give more images")
        covariance = self._full().div_(self.count - 1)
        return Moments(self._mean.clone(), covariance, self.count)

    def _strips(self) -> Iterator[tuple[int, int]]:
        for a in range(0, self.dim, _STRIP):
            yield a, min(a + _STRIP, self.dim)

    def _add(self, features: Float[Tensor, "N D"]) -> None:
        start = 0
        while start < len(features):
            if self._rows is None:
                self._rows = torch.empty(_PENDING + 1, self.dim, dtype=torch.float64)
            part = features[start : start + _PENDING - self._pending]
            self._rows[self._pending : self._pending + len(part)] = part
            self._pending += len(part)
            start += len(part)
            if self._pending == _PENDING:
                self._take_in(self._rows)

    def _take_in(self, rows: Float64[Tensor, "R D"]) -> None:
        n, self._pending = self._pending, 0
        mean = rows[:n].mean(dim=0)
        rows[:n] -= mean
        delta, weight = self._shift(n, mean)
        # The shift between the means is one more row of the product.
        rows[n] = delta * weight**0.5
        used = rows[: n + 1]
        for (a, b), strip in zip(self._strips(), self._scatter, strict=True):
            strip.addmm_(used[:, a:b].T, used[:, :b])

    def _shift(self, count: int, mean: Float64[Tensor, "D"]) -> tuple[Float64[Tensor, "D"], float]:
        """Takes count and mean in; returns delta and its factor in the scatter."""
        total = self._count + count
        delta = mean - self._mean
        weight = self._count * count / total
        self._mean = self._mean + delta * (count / total)
        self._count = total
        return delta, weight

    def _flush(self) -> None:
        if self._rows is not None and self._pending:
            self._take_in(self._rows)
        self._rows = None

    def _full(self) -> Float64[Tensor, "D D"]:
        self._flush()
        full = torch.empty(self.dim, self.dim, dtype=torch.float64)
        for (a, b), strip in zip(self._strips(), self._scatter, strict=True):
            beside, square = strip[:, :a], strip[:, a:]
            full[a:b, :a] = beside
            full[:a, a:b] = beside.T
            full[a:b, a:b] = square.tril() + square.tril(-1).T
        return full


class GroupedMoments:
    """Moments in 10 groups of images, from whose differences the error of what is computed from all is estimated.

    The group of an image follows from its index alone, whatever the batches and processes. Of every ten images that
    follow each other one goes to each group, in turn from a place that is drawn for each ten: were it always the same
    place, a group would be one class where classes alternate.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._groups = [StreamingMoments(dim) for _ in range(_GROUPS)]

    @property
    def count(self) -> int:
        """How many vectors were added."""
        return sum(group.count for group in self._groups)

    def update(self, features: Float[Tensor, "N D"], start: int) -> None:
        """Add the features of the images start, start + 1, ...; each image once, in any order.

        Raises UserError where they hold NaN or infinite values, or are not of the dimension of the others.
        """
        features = _checked(features.to("cpu"), self.dim)
        tens = range(start // _GROUPS, (start + len(features)) // _GROUPS + 1)
        turns = torch.tensor([image_seed(0, ten) % _GROUPS for ten in tens])
        index = torch.arange(start, start + len(features))
        place = (index + turns[index // _GROUPS - tens.start]) % _GROUPS
        for number, group in enumerate(self._groups):
            group._add(features[place == number])

    def merge(self, other: "GroupedMoments") -> None:
        """Add all that `other` has seen; of other images."""
        for mine, theirs in zip(self._groups, other._groups, strict=True):
            mine.merge(theirs)

    def total(self) -> Moments:
        """The moments of all. Raises UserError for fewer than two vectors."""
        return self._joined(self._groups).result()

    def halves(self) -> tuple[Moments, Moments]:
        """The moments of two halves of the images. Raises UserError for fewer than two vectors in a half."""
        first, second = (self._joined(self._groups[parity::2]) for parity in (0, 1))
        return first.result(), second.result()

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors, to send to another process."""
        for group in self._groups:
            group._flush()
        return {
            "count": torch.tensor([group._count for group in self._groups]),
            "mean": torch.stack([group._mean for group in self._groups]),
            "scatter": torch.stack(
                [torch.cat([strip.flatten() for strip in group._scatter]) for group in self._groups]
            ),
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "GroupedMoments":
        """The inverse of `state`."""
        made = cls(state["mean"].shape[1])
        for number, group in enumerate(made._groups):
            group._count = int(state["count"][number])
            group._mean = state["mean"][number].clone()
            parts = state["scatter"][number].split([strip.numel() for strip in group._scatter])
            for strip, part in zip(group._scatter, parts, strict=True):
                strip.copy_(part.view_as(strip))
        return made

    def _joined(self, groups: Iterable[StreamingMoments]) -> StreamingMoments:
        joined = StreamingMoments(self.dim)
        for group in groups:
            joined.merge(group)
        return joined

    def group_sums(
        self, origin: Float64[Tensor, "D"], linear: Float64[Tensor, "D"], quadratic: Float64[Tensor, "D D"]
    ) -> tuple[Float64[Tensor, "G"], Float64[Tensor, "G"]]:
        """Of each group: the number of vectors, and their sum of linear^T z + z^T quadratic z with z = x - origin."""
        counts, values = [], []
        for group in self._groups:
            scatter = group._full()
            shift = group._mean - origin
            inner = torch.dot(scatter.flatten(), quadratic.flatten())
            values.append(inner + group._count * (linear @ shift + shift @ quadratic @ shift))
            counts.append(group._count)
        return torch.tensor(counts, dtype=torch.float64), torch.stack(values)


def moments(features: Float[Tensor, "N D"]) -> Moments:
    """The moments of features held in memory at once; N >= 2."""
    stream = StreamingMoments(features.shape[1])
    stream.update(features)
    return stream.result()


class _Factor(NamedTuple):
    """F with covariance = F F^T: lower triangular, or with orthogonal columns, one for each direction of variance."""

    matrix: Float64[Tensor, "D R"]
    triangular: bool


def _factor(covariance: Float64[Tensor, "D D"]) -> _Factor:
    # What is smaller than this is noise around zero; its root would be 1e8 times larger than the noise.
    round_off = len(covariance) * torch.finfo(covariance.dtype).eps
    lower, failed = torch.linalg.cholesky_ex(covariance)
    pivots = lower.diagonal().square()
    if not failed and pivots.min() > round_off * pivots.max():
        return _Factor(lower, True)
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > round_off * values[-1].abs()
    return _Factor(vectors[:, kept] * values[kept].sqrt(), False)


def _nuclear_norm(b: Float64[Tensor, "M N"], squares: Float64[Tensor, "K"] | None = None) -> float:
    """The sum of the singular values; `squares`, if they are known, are the eigenvalues of B^T B, ascending."""
    if not b.numel():
        return 0.0
    # The roots of the eigenvalues are found five times sooner, but not to full precision: a root r is off by up to
    # noise / r. These errors have either sign, so that the sum is far better than the bound that is asked for.
    values = squares
    if values is None:
        values = torch.linalg.eigvalsh(b.T @ b if b.shape[0] >= b.shape[1] else b @ b.T)
    noise = torch.finfo(b.dtype).eps * values[-1]
    if values[0] > noise:
        roots = values.sqrt()
        if (noise / roots).sum() < _PRECISION * roots.sum():
            return roots.sum().item()
    return torch.linalg.svdvals(b).sum().item()


def _distance(first: Moments, second: Moments, cross: float) -> float:
    """The distance where `cross` is the nuclear norm of B."""
    spread = first.covariance.trace() + second.covariance.trace()
    return ((first.mean - second.mean).square().sum() + spread).item() - 2 * cross


def _transport(
    factor: _Factor, squares: Float64[Tensor, "R"], vectors: Float64[Tensor, "R R"]
) -> Float64[Tensor, "D D"]:
    """T from the first factor and the eigenvectors of B^T B; zero where the first Gaussian has no variance."""
    f1 = factor.matrix
    root = (vectors * squares.clamp(min=0).sqrt()) @ vectors.T
    if factor.triangular:
        half = torch.linalg.solve_triangular(f1.T, root, upper=True)
        return torch.linalg.solve_triangular(f1, half, upper=False, left=False)
    inverse = f1 / f1.square().sum(dim=0)
    return inverse @ root @ inverse.T


def frechet_distance(
    mu1: Float[Tensor, "D"], sigma1: Float[Tensor, "D D"], mu2: Float[Tensor, "E"], sigma2: Float[Tensor, "E E"]
) -> float:
    """Squared Frechet distance of the Gaussians N(mu1, sigma1) and N(mu2, sigma2), as FID reports it; never negative.

    The covariances are symmetric and positive semidefinite, of any rank. Raises UserError where D and E differ or
    a value is not finite.
    """
    _check_dims(len(mu1), len(mu2))
    mu1, sigma1, mu2, sigma2 = (t.to("cpu", torch.float64) for t in (mu1, sigma1, mu2, sigma2))
    if not all(t.isfinite().all() for t in (mu1, sigma1, mu2, sigma2)):
        raise UserError("the moments hold NaN or infinite values; check the images and the feature network")
    cross = _nuclear_norm(_factor(sigma2).matrix.T @ _factor(sigma1).matrix)
    return max(_distance(Moments(mu1, sigma1, 0), Moments(mu2, sigma2, 0), cross), 0.0)


def frechet_estimate(samples: GroupedMoments, reference: Moments) -> FrechetEstimate:
    """The distance of samples to a reference, extrapolated to endless samples as well, with their standard errors.

    The errors are those of drawing the samples; the reference is taken as it is. They come from ten groups, and are
    themselves uncertain by about a quarter. Raises UserError for fewer than 4 samples, or where the samples' features
    and the reference's differ in number.
    """
    dim, count = samples.dim, samples.count
    _check_dims(dim, len(reference.mean))
    if count < 4:
        raise UserError(f"the error of a Frechet distance needs at least 4 samples, got {count}; give more images")
    f2 = _factor(reference.covariance).matrix
    halves = []
    for half in samples.halves():
        cross = _nuclear_norm(f2.T @ _factor(half.covariance).matrix)
        halves.append((_distance(half, reference, cross), half.count))

    total = samples.total()
    factor1 = _factor(total.covariance)
    b = f2.T @ factor1.matrix
    squares, vectors = torch.linalg.eigh(b.T @ b)
    distance = max(_distance(total, reference, _nuclear_norm(b, squares)), 0.0)
    # With d(n) = d + c / n the halves' mean bias is `ratio` times that of the whole; 2 where the halves are equal.
    ratio = count * sum(1 / n for _, n in halves) / 2
    extrapolated = (ratio * distance - sum(d for d, _ in halves) / 2) / (ratio - 1)

    bend = torch.eye(dim, dtype=torch.float64) - _transport(factor1, squares, vectors)
    counts, sums = samples.group_sums(total.mean, 2 * (total.mean - reference.mean), bend)
    sums = sums - counts / count * sums.sum()  # the last term of phi, for the sum over all samples is zero
    groups = int((counts > 0).sum())
    error = (sums.square().sum() * groups / (groups - 1)).sqrt().item() / count
    return FrechetEstimate(Estimate(distance, error), Estimate(extrapolated, error), count, dim, count <= dim)


def _check_dims(first: int, second: int) -> None:
    if first != second:
        raise UserError(f"the two sets have {first} and {second} features; take both from the same feature network")
