"""Frechet distance between two sets of features, from moments gathered in one pass.

Each set is summarised by a Gaussian. The squared 2-Wasserstein distance between the two Gaussians (Dowson and Landau
1982; Heusel et al. 2017, "GANs trained by a two time-scale update rule", eq. 6) is

    d = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^{1/2}).

S1 S2 has the eigenvalues of the symmetric matrix S1^{1/2} S2 S1^{1/2} = B^T B with B = S2^{1/2} S1^{1/2}, so the last
trace is the sum of the singular values of B. Working on B instead of B^T B keeps full precision where the covariances
are nearly singular, which is the rule (2048 features of a few thousand images), and no general matrix square root, with
its complex round-off, is needed.

The moments are merged in the way of Chan, Golub and LeVeque (1979), eqs. 2.1a-b, in float64: the centred sums of
squares of two parts A and B combine as

    M = M_A + M_B + delta delta^T n_A n_B / (n_A + n_B),    delta = mean_B - mean_A,

which never subtracts two large numbers, as E[x^2] - E[x]^2 does.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from unistep.errors import UserError


@dataclass(frozen=True)
class Moments:
    """Mean and unbiased covariance (divisor count - 1) of `count` feature vectors."""

    mean: Float64[Tensor, "D"]
    covariance: Float64[Tensor, "D D"]
    count: int


class StreamingMoments:
    """Collects mean and covariance of features that arrive in batches; the order and the batch size do not matter.

    Parts gathered apart (in other processes, say) join through `merge`.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)  # centred sum of squares, M above

    def update(self, features: Float[Tensor, "N D"]) -> None:
        """Add a batch of features, of any float type and on any device."""
        if len(features) == 0:
            return
        features = features.to("cpu", torch.float64)
        mean = features.mean(dim=0)
        centred = features - mean
        self._combine(len(features), mean, centred.T @ centred)

    def merge(self, other: "StreamingMoments") -> None:
        """Add all that `other` has seen."""
        if other.count:
            self._combine(other.count, other._mean, other._scatter)

    def _combine(self, count: int, mean: Float64[Tensor, "D"], scatter: Float64[Tensor, "D D"]) -> None:
        total = self.count + count
        delta = mean - self._mean
        self._mean = self._mean + delta * (count / total)
        self._scatter = self._scatter + scatter + torch.outer(delta, delta) * (self.count * count / total)
        self.count = total

    def result(self) -> Moments:
        """The moments so far. Raises UserError for fewer than two vectors: they have no covariance."""
        if self.count < 2:
            raise UserError(f"moments need at least 2 feature vectors, got {self.count}; give more images")
        return Moments(self._mean.clone(), self._scatter / (self.count - 1), self.count)


def moments(features: Float[Tensor, "N D"]) -> Moments:
    """The moments of features held in memory at once; N >= 2."""
    stream = StreamingMoments(features.shape[1])
    stream.update(features)
    return stream.result()


def _symmetric_sqrt(matrix: Float64[Tensor, "D D"]) -> Float64[Tensor, "D D"]:
    values, vectors = torch.linalg.eigh(matrix)
    # Eigenvalues below round-off are noise around zero; their roots would be 1e8 times larger than the noise.
    noise = values[-1].abs() * len(values) * torch.finfo(matrix.dtype).eps
    roots = torch.where(values > noise, values, 0).sqrt()
    return (vectors * roots) @ vectors.T


def frechet_distance(
    mu1: Float[Tensor, "D"], sigma1: Float[Tensor, "D D"], mu2: Float[Tensor, "E"], sigma2: Float[Tensor, "E E"]
) -> float:
    """Squared Frechet distance of the Gaussians N(mu1, sigma1) and N(mu2, sigma2), as FID reports it; never negative.

    The covariances are symmetric and positive semidefinite, of any rank. Raises UserError where D and E differ or
    a value is not finite.
    """
    if mu1.shape != mu2.shape:
        raise UserError(
            f"the two sets have {len(mu1)} and {len(mu2)} features; take both from the same feature network"
        )
    mu1, sigma1, mu2, sigma2 = (t.to("cpu", torch.float64) for t in (mu1, sigma1, mu2, sigma2))
    if not all(t.isfinite().all() for t in (mu1, sigma1, mu2, sigma2)):
        raise UserError("the moments hold NaN or infinite values; check the images and the feature network")
    cross = torch.linalg.svdvals(_symmetric_sqrt(sigma2) @ _symmetric_sqrt(sigma1)).sum()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * cross
    return max(distance.item(), 0.0)
