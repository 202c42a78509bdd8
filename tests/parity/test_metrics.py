"""Frechet and kernel distances beside torchmetrics', on features that pass through its metrics unchanged."""

import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from unistep.metrics.frechet import frechet_distance, frechet_estimate
from unistep.metrics.kernel import kernel_distance
from unistep.metrics.moments import GroupedMoments, moments

pytestmark = pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")


class Identity(torch.nn.Module):
    num_features = 24

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def features(count: int, seed: int) -> torch.Tensor:
    """Correlated, not Gaussian, not negative, as pooled activations are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(24, 24, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 0.2
    return (torch.randn(count, 24, generator=generator, dtype=torch.float64) @ mixing + 0.1 * (1 + seed)).relu()


def test_frechet_distance():
    real, fake = features(700, 0), features(500, 1)
    metric = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    for part in real.split(64):
        metric.update(part, real=True)
    for part in fake.split(99):
        metric.update(part, real=False)
    a, b = moments(real), moments(fake)
    expected = metric.compute().item()
    assert expected > 0.01
    assert frechet_distance(a.mean, a.covariance, b.mean, b.covariance) == pytest.approx(expected, rel=1e-8)
    grouped = GroupedMoments(24)
    grouped.update(fake, 0)
    assert frechet_estimate(grouped, a).distance.value == pytest.approx(expected, rel=1e-8)


def test_kernel_distance():
    real, fake = features(300, 0), features(300, 1)
    expected = poly_mmd(real, fake).item()
    assert expected > 0.01
    assert kernel_distance(fake, real).value == pytest.approx(expected, rel=1e-10)
    # One subset of all; its order does not matter.
    metric = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=300).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert kernel_distance(fake, real).value == pytest.approx(metric.compute()[0].item(), rel=1e-6)
