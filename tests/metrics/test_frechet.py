import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unistep.errors import UserError
from unistep.metrics.frechet import frechet_distance
from unistep.metrics.moments import StreamingMoments, moments

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.npz"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(dim: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


def test_golden_distance():
    golden = np.load(GOLDEN)
    a, b = (moments(torch.from_numpy(golden[k])) for k in ("reference_features", "sample_features"))
    distance = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert distance == pytest.approx(float(golden["frechet_distance"]), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda s: sum(s) >= 2),
    merged=st.booleans(),
    offset=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_moments_of_any_split_equal_numpy(sizes: list[int], merged: bool, offset: float, seed: int):
    features = normal(sum(sizes), 5, seed=seed) @ normal(5, 5, seed=seed + 1) + offset
    stream = StreamingMoments(5)
    for part in features.split(sizes):
        if merged:
            other = StreamingMoments(5)
            other.update(part)
            stream.merge(other)
        else:
            stream.update(part)
    result = stream.result()
    assert result.count == len(features)
    np.testing.assert_allclose(result.mean, features.numpy().mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def test_moments_accumulate_float32_features_in_float64():
    # In float32, or from E[x^2] - E[x]^2, a variance of 1 on a mean of 10,000 would be lost.
    features = (normal(4000, 3) + 10_000).float()
    covariance = moments(features).covariance
    np.testing.assert_allclose(covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-10)


def test_result_is_a_snapshot():
    stream = StreamingMoments(3)
    stream.update(normal(10, 3))
    before = stream.result()
    mean, covariance = before.mean.clone(), before.covariance.clone()
    stream.update(normal(10, 3, seed=1) + 5)
    assert torch.equal(before.mean, mean) and torch.equal(before.covariance, covariance)


@pytest.mark.parametrize("count", [2, 20, 500], ids=["rank 1", "rank 19", "full rank"])
def test_identical_sets_are_at_distance_zero(count: int):
    m = moments(normal(count, 64) * torch.logspace(-6, 2, 64, dtype=torch.float64))
    distance = frechet_distance(m.mean, m.covariance, m.mean, m.covariance)
    assert 0 <= distance < 1e-10 * m.covariance.trace()


def test_shifted_gaussian_is_at_the_squared_shift():
    m, shift = moments(normal(300, 16)), normal(16, seed=1)
    distance = frechet_distance(m.mean, m.covariance, m.mean + shift, m.covariance)
    assert distance == pytest.approx(shift.square().sum().item(), rel=1e-9)


@pytest.mark.parametrize("decades", [0, 6, 20])
def test_commuting_covariances_closed_form(decades: int):
    # With common eigenvectors the distance is the sum of (sqrt(a_i) - sqrt(b_i))^2, however badly conditioned.
    basis = rotation(40, seed=2)
    a = torch.logspace(0, -decades, 40, dtype=torch.float64)
    b = a.flip(0) * 3
    zero = torch.zeros(40, dtype=torch.float64)
    distance = frechet_distance(zero, (basis * a) @ basis.T, zero, (basis * b) @ basis.T)
    assert distance == pytest.approx((a.sqrt() - b.sqrt()).square().sum().item(), rel=1e-6)


def test_orthogonal_subspaces_share_nothing():
    basis = rotation(30, seed=3)
    low, high = basis[:, :10] @ basis[:, :10].T, basis[:, 10:] @ basis[:, 10:].T
    zero = torch.zeros(30, dtype=torch.float64)
    assert frechet_distance(zero, low, zero, high) == pytest.approx(30, rel=1e-9)


def test_fewer_vectors_than_features():
    # With centred rows X and Y, tr((S1 S2)^{1/2}) is the sum of the singular values of X Y^T / (n - 1). Roots of the
    # eigenvalues of a product of covariances miss it by 1e-7.
    x, y = normal(20, 200), normal(20, 200, seed=1)
    a, b = moments(x), moments(y)
    cross = torch.linalg.svdvals((x - x.mean(dim=0)) @ (y - y.mean(dim=0)).T).sum() / 19
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    assert frechet_distance(a.mean, a.covariance, b.mean, b.covariance) == pytest.approx(expected.item(), rel=1e-11)


def test_two_dimensional_closed_form():
    # tr((S1 S2)^{1/2}) of 2x2 matrices is sqrt(tr(S1 S2) + 2 sqrt(det(S1 S2))); these two do not commute.
    s1 = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    s2 = torch.tensor([[1.0, -0.8], [-0.8, 3.0]], dtype=torch.float64)
    product = s1 @ s2
    cross = math.sqrt(product.trace().item() + 2 * math.sqrt(torch.linalg.det(product).item()))
    zero = torch.zeros(2, dtype=torch.float64)
    assert frechet_distance(zero, s1, zero, s2) == pytest.approx(7 - 2 * cross, rel=1e-12)


def test_symmetric_and_invariant_to_rotation():
    a, b = moments(normal(100, 12)), moments(normal(80, 12, seed=1) * 2 + 1)
    q = rotation(12, seed=2)
    forth = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(b.mean, b.covariance, a.mean, a.covariance) == pytest.approx(forth, rel=1e-12)
    turned = frechet_distance(q @ a.mean, q @ a.covariance @ q.T, q @ b.mean, q @ b.covariance @ q.T)
    assert turned == pytest.approx(forth, rel=1e-10)


def test_user_errors():
    one = StreamingMoments(3)
    one.update(normal(1, 3))
    with pytest.raises(UserError, match="at least 2"):
        one.result()
    a, b = moments(normal(9, 3)), moments(normal(9, 4))
    with pytest.raises(UserError, match="3 and 4 features"):
        frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    with pytest.raises(UserError, match="NaN"):
        frechet_distance(a.mean * math.nan, a.covariance, a.mean, a.covariance)
