import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from unistep.errors import UserError
from unistep.metrics.frechet import FrechetEstimate, _factor, _nuclear_norm, frechet_distance, frechet_estimate
from unistep.metrics.moments import GroupedMoments, Moments, StreamingMoments, moments

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "frechet.py"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grouped(features: torch.Tensor) -> GroupedMoments:
    made = GroupedMoments(features.shape[1])
    made.update(features, 0)
    return made


def exact(mean: torch.Tensor, std: torch.Tensor) -> Moments:
    return Moments(mean, torch.diag(std**2), 10**9)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], rtol=1e-9, atol=1e-9) for key in a)


def test_groups_do_not_depend_on_batches_order_or_processes():
    features = normal(1337, 7) + 100
    whole = grouped(features)
    processes = [GroupedMoments(7), GroupedMoments(7)]
    for number, start in enumerate([900, 0, 37, 38, 1336]):
        end = {900: 1336, 0: 37, 37: 38, 38: 900, 1336: 1337}[start]
        processes[number % 2].update(features[start:end], start)
    first, second = (GroupedMoments.from_state(process.state()) for process in processes)
    first.merge(second)
    assert first.count == whole.count == 1337
    assert same(first.state(), whole.state())
    result = first.total()
    np.testing.assert_allclose(result.mean, features.numpy().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(result.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dim", [511, 513, 1100])
def test_strips_of_the_scatter_join(dim: int):
    features = normal(700, dim).float()
    made = grouped(features)
    result = GroupedMoments.from_state(made.state()).total()
    np.testing.assert_allclose(result.covariance, np.cov(features.double(), rowvar=False), rtol=1e-9, atol=1e-10)
    assert torch.equal(result.covariance.tril(), result.covariance.T.tril())


def test_batches_are_copied():
    batch, stream = normal(20, 3).float(), StreamingMoments(3)
    expected = moments(batch.clone())
    stream.update(batch)
    batch.zero_()
    assert torch.equal(stream.result().covariance, expected.covariance)


@pytest.mark.parametrize("classes", [2, 5, 10, 20])
def test_no_group_or_half_is_of_one_class_where_classes_alternate(classes: int):
    indicator = torch.nn.functional.one_hot(torch.arange(4000) % classes).double()
    made = grouped(indicator)
    state = made.state()
    assert state["count"].tolist() == [400] * 10
    # A group's share of a class is a binomial's: within five standard deviations.
    spread = math.sqrt((1 / classes) * (1 - 1 / classes) / 400)
    assert ((state["mean"] - 1 / classes).abs() < 5 * spread + 1e-9).all()
    for half in made.halves():
        assert half.count == 2000
        assert ((half.mean - 1 / classes).abs() < 5 * spread / math.sqrt(5) + 1e-9).all()


def test_distance_is_frechet_distance():
    features, reference = normal(400, 12) * 1.2 + 0.1, moments(normal(500, 12, seed=1))
    found, whole = frechet_estimate(grouped(features), reference), moments(features)
    expected = frechet_distance(whole.mean, whole.covariance, reference.mean, reference.covariance)
    assert found.distance.value == pytest.approx(expected, rel=1e-10)
    assert (found.count, found.dim, found.biased) == (400, 12, False)


@pytest.mark.parametrize("change", ["mean", "spread", "both"])
def test_standard_error_agrees_with_the_jackknife(change: str):
    # Of many samples the delta method and the leave-one-group-out jackknife are the same.
    features = normal(20_000, 6) * (1 if change == "mean" else 1.4) + (0 if change == "spread" else 0.4)
    reference = exact(torch.zeros(6, dtype=torch.float64), torch.linspace(0.5, 1.5, 6, dtype=torch.float64))
    made = grouped(features)
    left_out = []
    for number in range(10):
        others = StreamingMoments(6)
        for group in made._groups[:number] + made._groups[number + 1 :]:
            others.merge(group)
        m = others.result()
        left_out.append(frechet_distance(m.mean, m.covariance, reference.mean, reference.covariance))
    jackknife = math.sqrt(0.9 * 10 * np.var(left_out))
    assert frechet_estimate(made, reference).distance.standard_error == pytest.approx(jackknife, rel=0.02)


def repeat(draw: Callable[[int], torch.Tensor], reference: Moments, times: int = 150) -> list[FrechetEstimate]:
    return [frechet_estimate(grouped(draw(seed)), reference) for seed in range(times)]


def spreads(found: list[FrechetEstimate]) -> tuple[float, float, float]:
    """Of many draws: the standard deviation of both distances, and the root mean square of the standard errors."""
    distances, extrapolated = ([getattr(f, name).value for f in found] for name in ("distance", "extrapolated"))
    error = math.sqrt(np.mean([f.distance.standard_error**2 for f in found]))
    return float(np.std(distances)), float(np.std(extrapolated)), error


STD = torch.logspace(0, -1.5, 16, dtype=torch.float64)
ZERO = torch.zeros(16, dtype=torch.float64)


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda seed: normal(300, 16, seed=seed) * STD + 0.3, id="shifted"),
        pytest.param(lambda seed: normal(300, 16, seed=seed) * STD * 1.5, id="wider"),
        pytest.param(lambda seed: normal(300, 16, seed=seed).abs() * STD, id="skewed"),
        pytest.param(lambda seed: normal(300, 16, seed=seed).pow(3) * STD, id="heavy-tailed"),
    ],
)
def test_standard_error_is_the_spread_over_draws(draw: Callable[[int], torch.Tensor]):
    distances, extrapolated, error = spreads(repeat(draw, exact(ZERO, STD)))
    assert error == pytest.approx(distances, rel=0.15)
    assert error == pytest.approx(extrapolated, rel=0.15)


def test_standard_error_where_samples_are_perfect():
    distances, extrapolated, error = spreads(repeat(lambda seed: normal(300, 16, seed=seed) * STD, exact(ZERO, STD)))
    assert error == pytest.approx(extrapolated, rel=0.15)
    assert distances < error < 1.6 * distances


@pytest.mark.parametrize("count", [100, 101, 107])
def test_extrapolation_takes_the_bias_away(count: int):
    # The halves of 101 and 107 are not equal.
    found = repeat(lambda seed: normal(count, 16, seed=seed) * STD * 1.3, exact(ZERO, STD))
    truth = 0.09 * STD.square().sum().item()
    bias = np.mean([f.distance.value for f in found]) - truth
    left = np.mean([f.extrapolated.value for f in found]) - truth
    spread = np.std([f.extrapolated.value for f in found]) / math.sqrt(len(found))
    assert bias > 10 * spread
    assert abs(left) < 3 * spread + 0.03 * bias


def test_features_that_do_not_vary_change_nothing():
    # The first way goes through Cholesky's factors, the others through eigenvectors.
    features, other = normal(900, 8) * 1.2 + 0.2, normal(500, 8, seed=1)
    plain = frechet_estimate(grouped(features), moments(other))
    basis = torch.linalg.qr(normal(11, 11, seed=2)).Q
    wide, wide_other = (torch.nn.functional.pad(f, (0, 3), value=5.0) @ basis for f in (features, other))
    assert _factor(moments(features).covariance).triangular
    assert not _factor(moments(wide).covariance).triangular
    padded = frechet_estimate(grouped(wide), moments(wide_other))
    for name in ("distance", "extrapolated"):
        a, b = getattr(plain, name), getattr(padded, name)
        assert b.value == pytest.approx(a.value, rel=1e-7)
        assert b.standard_error == pytest.approx(a.standard_error, rel=1e-6)


def test_fewer_samples_than_features_are_called_biased():
    reference = moments(normal(3000, 40, seed=1))
    small, large = (frechet_estimate(grouped(normal(count, 40)), reference) for count in (40, 41))
    assert small.biased and not large.biased
    assert 0 < small.distance.standard_error < small.distance.value


@pytest.mark.parametrize("decades", [0, 3, 8, 14])
def test_sum_of_singular_values_where_they_are_small(decades: int):
    left, right = (torch.linalg.qr(normal(60, 60, seed=seed)).Q for seed in (0, 1))
    values = torch.logspace(0, -decades, 60, dtype=torch.float64)
    assert _nuclear_norm((left * values) @ right) == pytest.approx(values.sum().item(), rel=1e-12)
    assert _nuclear_norm((left * values)[:, :7]) == pytest.approx(values[:7].sum().item(), rel=1e-12)


def test_sum_of_many_singular_values_near_round_off():
    # The eigenvalues of B^T B are above its round-off, but their roots would be off by a tenth.
    left, right = (torch.linalg.qr(normal(300, 300, seed=seed)).Q for seed in (0, 1))
    values = torch.full((300,), 3e-8, dtype=torch.float64)
    values[0] = 1
    assert _nuclear_norm((left * values) @ right) == pytest.approx(values.sum().item(), rel=1e-12)


def test_user_errors():
    stream, made = StreamingMoments(3), GroupedMoments(3)
    broken = normal(50, 3)
    broken[3, 0], broken[20], broken[21, 2] = math.nan, math.inf, -math.inf
    for update in (stream.update, lambda features: made.update(features, 0)):
        with pytest.raises(UserError, match="^3 of 50 feature vectors hold NaN or infinite values"):
            update(broken)
        with pytest.raises(UserError, match="4 numbers, not 3"):
            update(normal(5, 4))
    assert stream.count == made.count == 0
    made.update(normal(3, 3), 0)
    with pytest.raises(UserError, match="at least 4 samples, got 3"):
        frechet_estimate(made, moments(normal(9, 3)))
    with pytest.raises(UserError, match="3 and 4 features"):
        frechet_estimate(made, moments(normal(9, 4)))


def test_a_collapsed_model_is_at_the_distance_to_a_point():
    reference = moments(normal(500, 5))
    found = frechet_estimate(grouped(torch.full((40, 5), 2.0)), reference)
    expected = (reference.mean - 2).square().sum() + reference.covariance.trace()
    assert found.distance.value == pytest.approx(expected.item(), rel=1e-12)
    assert found.extrapolated.value == pytest.approx(expected.item(), rel=1e-12)
    assert found.distance.standard_error == 0


def test_four_samples_are_enough():
    found = frechet_estimate(grouped(normal(4, 3)), moments(normal(50, 3, seed=1)))
    assert math.isfinite(found.distance.standard_error) and math.isfinite(found.extrapolated.value)


@pytest.mark.slow
def test_fifty_thousand_features_in_ten_seconds_and_a_gigabyte(tmp_path: Path):
    # Seconds of computing, for the machine may be busy: 20 on one core are 10 on two.
    random = np.random.default_rng(0)
    features = np.lib.format.open_memmap(tmp_path / "f.npy", mode="w+", dtype=np.float32, shape=(50_000, 2048))
    scale = np.logspace(0, -2, 2048, dtype=np.float32)
    for start in range(0, 50_000, 5000):
        features[start : start + 5000] = random.standard_normal((5000, 2048), dtype=np.float32) * scale
    features.flush()
    np.savez(tmp_path / "r.npz", mean=np.zeros(2048), covariance=np.diag(scale.astype(float) ** 2), count=50_000)
    command = [sys.executable, BENCHMARK, "--worker", "with errors", tmp_path / "f.npy", tmp_path / "r.npz"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert found["cpu_seconds"] < 20
    assert found["peak_mib"] < 1e9 / 2**20
