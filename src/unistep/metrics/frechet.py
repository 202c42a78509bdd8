"""Frechet distance between two sets of features, from moments gathered in one pass, with its standard error.

Each set is summarised by a Gaussian. The squared 2-Wasserstein distance between the two Gaussians (Dowson and Landau
1982; Heusel et al. 2017, "GANs trained by a two time-scale update rule", eq. 6) is

    d = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^{1/2}).

With any factors S1 = F1 F1^T and S2 = F2 F2^T the last trace is the sum of the singular values of B = F2^T F1. Working
on B instead of S1 S2 keeps full precision where the covariances are nearly singular, which is the rule (2048 features
of a few thousand images), and no general matrix square root, with its complex round-off, is needed. Cholesky's factors
are the fastest; where a covariance is too near to singular for them, its eigenvectors are taken. Where B is not nearly
singular either, the eigenvalues of B^T B, which are found sooner, are exact enough.

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

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.estimate import Estimate
from unistep.metrics.measurement import Features, Inputs, Measurement, More
from unistep.metrics.moments import GroupedMoments, Moments, moments

_PRECISION = 1e-7  # of a sum of singular values, were all roundings to one side; in fact 1e-12 comes out


def compute(inputs: Inputs) -> Measurement:
    """Returns the distance of the samples to the reference, and the extrapolated one where it is not mostly bias."""
    reference = inputs.reference.moments()
    found = frechet_estimate(inputs.samples.grouped(), reference)
    warnings = []
    if found.biased:
        warnings.append(
            f"{inputs.title} is biased: {found.count} samples are not more than the {found.dim} dimensions of their "
            "features; compare it only with figures of as many samples, or make more"
        )
    if 0 < reference.count <= found.dim:
        warnings.append(
            f"{inputs.title} is biased: the reference has {reference.count} images, not more than the {found.dim} "
            "dimensions of their features"
        )
    # Of a biased one an extrapolation of first order is too rough.
    more = [] if found.biased else [More("extrapolated", f"{inputs.title}, N → ∞", found.extrapolated)]
    return Measurement(found.distance, {"count": found.count}, more, warnings)


def value(samples: Float[Tensor, "N D"], reference: Features) -> float:
    """Returns the distance alone."""
    ours, theirs = moments(samples), reference.moments()
    return frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)


@dataclass(frozen=True)
class FrechetEstimate:
    """The Frechet distance of samples to a reference that is taken as exact.

    Args:
        distance: distance as FID reports it. Its standard error is up to sqrt(2) too large where the value is mostly
            bias.
        extrapolated: distance extrapolated to infinitely many samples; may be negative. It is good where half the
            samples are several times `dim`, or where few of the features vary much.
        count: number of samples.
        dim: number of features.
        biased: whether there are no more samples than features: the distance then depends more on their number than
            on their quality, and both standard errors are rough.
    """

    distance: Estimate
    extrapolated: Estimate
    count: int
    dim: int
    biased: bool


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
    """The sum of the singular values; `squares` are the eigenvalues of B^T B, ascending, where they are there."""
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
    """Returns the squared Frechet distance of two Gaussians, as FID reports it; it is never negative.

    Args:
        mu1, mu2: means.
        sigma1, sigma2: covariances, symmetric and positive semidefinite, of any rank.

    Raises:
        UserError: the Gaussians differ in dimension, or a value is not finite.
    """
    _check_dims(len(mu1), len(mu2))
    mu1, sigma1, mu2, sigma2 = (t.to("cpu", torch.float64) for t in (mu1, sigma1, mu2, sigma2))
    if not all(t.isfinite().all() for t in (mu1, sigma1, mu2, sigma2)):
        raise UserError("the moments hold NaN or infinite values; check the images and the feature network")
    cross = _nuclear_norm(_factor(sigma2).matrix.T @ _factor(sigma1).matrix)
    return max(_distance(Moments(mu1, sigma1, 0), Moments(mu2, sigma2, 0), cross), 0.0)


def frechet_estimate(samples: GroupedMoments, reference: Moments) -> FrechetEstimate:
    """Returns the distance of samples to a reference, and the extrapolated one, with their standard errors.

    The errors are those of drawing the samples; the reference is taken as exact. They come from ten groups, and are
    themselves uncertain by about a quarter.

    Args:
        samples: moments of the samples' features.
        reference: moments of the reference's features.

    Raises:
        UserError: there are fewer than 4 samples, or the features of the two sets differ in number.
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
