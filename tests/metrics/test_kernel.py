import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from unistep.errors import UserError
from unistep.metrics.kernel import _blocks, _compare, kernel_distance


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((x[:, None] * y[None]).mean(dim=2) + 1) ** 3


def mean_of_pairs(x: torch.Tensor) -> torch.Tensor:
    return kernel(x, x)[~torch.eye(len(x), dtype=torch.bool)].mean()


def brute_force(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return mean_of_pairs(x) + mean_of_pairs(y) - 2 * kernel(x, y).mean()


@pytest.mark.parametrize(("n", "m"), [(4, 4), (30, 30), (50, 17), (17, 50)])
def test_one_block_is_the_definition(n: int, m: int):
    x, y = normal(n, 5) + 0.5, normal(m, 5, seed=1) * 1.2
    assert kernel_distance(x, y).value == pytest.approx(brute_force(x, y).item(), rel=1e-10)


def test_more_rows_than_are_held_at_a_time():
    x, y = normal(2500, 3) + 0.5, normal(1300, 3, seed=1)
    assert kernel_distance(x, y).value == pytest.approx(brute_force(x, y).item(), rel=1e-9)


def test_value_is_the_mean_of_the_blocks():
    x, y = normal(60, 5) + 0.5, normal(60, 5, seed=1)
    expected = [brute_force(x[i], y[i]) for i in _blocks(x, 3)]
    assert kernel_distance(x, y, block=20).value == pytest.approx(torch.stack(expected).mean().item(), rel=1e-10)


def test_a_block_of_the_smaller_set_meets_several_of_the_larger():
    x, y = normal(40, 5) + 0.5, normal(110, 5, seed=1)
    x_blocks, y_blocks = _blocks(x, 2), _blocks(y, 6)
    expected = [
        mean_of_pairs(x[i])
        + sum(mean_of_pairs(y[j]) - 2 * kernel(x[i], y[j]).mean() for j in y_blocks[3 * number : 3 * number + 3]) / 3
        for number, i in enumerate(x_blocks)
    ]
    assert kernel_distance(x, y, block=20).value == pytest.approx(torch.stack(expected).mean().item(), rel=1e-10)


@pytest.mark.parametrize(("n", "count"), [(9, 2), (100, 3), (101, 10)])
def test_every_vector_is_in_one_block(n: int, count: int):
    blocks = _blocks(normal(n, 1), count)
    assert sorted(torch.cat(blocks).tolist()) == list(range(n))
    assert {len(block) for block in blocks} <= {n // count, n // count + 1}


@pytest.mark.parametrize(("n", "m", "block"), [(60, 60, 5000), (60, 60, 20), (45, 130, 20)])
def test_symmetric(n: int, m: int, block: int):
    x, y = normal(n, 5) + 0.3, normal(m, 5, seed=1)
    forth, back = kernel_distance(x, y, block=block), kernel_distance(y, x, block=block)
    assert forth.value == pytest.approx(back.value, rel=1e-10)
    assert forth.standard_error == pytest.approx(back.standard_error, rel=1e-8)


def test_the_order_of_a_set_does_not_matter():
    # Sorted by class, the one upwards and the other downwards, consecutive blocks would be of different classes.
    classes = torch.arange(400).div(100, rounding_mode="floor")[:, None] * 1.0
    found = kernel_distance(normal(400, 4) * 0.1 + classes, normal(400, 4, seed=1) * 0.1 + classes.flip(0), block=100)
    assert abs(found.value) < 4 * found.standard_error


def test_float32_features_are_taken_in_float64():
    x, y = normal(500, 64).float() * 0.01 + 10, normal(500, 64, seed=1).float() * 0.01 + 10
    assert kernel_distance(x, y).value == kernel_distance(x.double(), y.double()).value


def spreads(draw: Callable[[int], tuple[torch.Tensor, torch.Tensor]], block: int, times: int) -> dict[str, float]:
    found = [kernel_distance(*draw(seed), block=block) for seed in range(times)]
    values = [f.value for f in found]
    error = math.sqrt(np.mean([f.standard_error**2 for f in found]))
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values)), "error": error}


@pytest.mark.parametrize("sizes", [(60, 60, 5000), (60, 60, 20), (40, 160, 40)], ids=str)
def test_same_law_is_at_zero_on_average(sizes: tuple[int, int, int]):
    n, m, block = sizes
    found = spreads(lambda s: (normal(n, 8, seed=2 * s) + 1, normal(m, 8, seed=2 * s + 1) + 1), block, 300)
    assert abs(found["mean"]) < 3 * found["deviation"] / math.sqrt(300)
    # A negative variance of the projections is put to 0, and so the error is a little too large here.
    assert 0.95 < found["error"] / found["deviation"] < 1.4


@pytest.mark.parametrize("sizes", [(80, 80, 5000), (80, 240, 40), (240, 80, 40)], ids=str)
def test_standard_error_is_the_spread_over_draws(sizes: tuple[int, int, int]):
    n, m, block = sizes
    found = spreads(lambda s: (normal(n, 8, seed=2 * s) + 1.4, normal(m, 8, seed=2 * s + 1) + 1), block, 300)
    assert found["error"] == pytest.approx(found["deviation"], rel=0.12)


@pytest.mark.parametrize("shift", [0.0, 0.1])
@pytest.mark.parametrize("partners", [1, 4])
def test_variance_is_without_bias(partners: int, shift: float):
    found = []
    for seed in range(600):
        x, y = normal(30, 6, seed=2 * seed) + 1 + shift, normal(80, 6, seed=2 * seed + 1) + 1
        found.append(_compare(x, y.tensor_split(partners), partners))
    estimates = np.array([f.linear + f.pairs for f in found])
    assert np.mean(estimates) == pytest.approx(np.var([f.value for f in found]), rel=0.15)
    # Neither part is negligible, and the first is, on average, nothing where the laws are the same.
    linear = np.array([f.linear for f in found])
    assert (abs(linear.mean()) < 3 * linear.std() / math.sqrt(600)) == (shift == 0)


def test_grows_with_the_shift():
    reference = normal(300, 8) + 1
    values = [kernel_distance(normal(300, 8, seed=1) + 1 + shift, reference).value for shift in (0.1, 0.3, 0.6)]
    assert values == sorted(values) and values[0] > 0


def test_user_errors():
    x, broken = normal(20, 3), normal(20, 3, seed=1)
    broken[3, 0], broken[7] = math.nan, math.inf
    with pytest.raises(UserError, match="^2 of 20 feature vectors of the reference hold NaN"):
        kernel_distance(x, broken)
    with pytest.raises(UserError, match="3 and 4 features"):
        kernel_distance(x, normal(20, 4))
    with pytest.raises(UserError, match="at least 4 vectors of each set, the samples are 3"):
        kernel_distance(x[:3], x)
    with pytest.raises(UserError, match="block = 7"):
        kernel_distance(x, x, block=7)
