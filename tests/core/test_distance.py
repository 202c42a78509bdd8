import math

import pytest
import torch
from torch import Tensor

from unistep.core.distance import l1, l2, l2_32, pseudo_huber, pseudo_huber_c


def huber(a: Tensor, b: Tensor) -> Tensor:
    return pseudo_huber(a, b, 0.03)


ALL = [l1, l2, l2_32, pseudo_huber, huber]


@pytest.fixture
def pair(generator) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, 3, 3, 40, 48, generator=generator, dtype=torch.float64)
    return a, b


@pytest.mark.parametrize("distance", ALL)
def test_zero_at_equality_positive_elsewhere_and_symmetric(distance, pair):
    a, b = pair
    assert distance(a, b).shape == (3,)
    assert torch.equal(distance(a, a), torch.zeros(3, dtype=torch.float64))
    assert (distance(a, b) > 0).all()
    torch.testing.assert_close(distance(a, b), distance(b, a))


@pytest.mark.parametrize("distance", ALL)
def test_one_number_per_image(distance, pair):
    a, b = pair
    for i in range(3):
        torch.testing.assert_close(distance(a[i : i + 1], b[i : i + 1]), distance(a, b)[i : i + 1])


@pytest.mark.parametrize("distance", ALL)
def test_gradients_are_finite_at_equality(distance):
    a = torch.ones(2, 3, 32, 32, requires_grad=True)
    distance(a, torch.ones(2, 3, 32, 32)).sum().backward()
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_values_on_a_constant_difference():
    a, b = torch.full((2, 3, 64, 64), 0.75), torch.full((2, 3, 64, 64), 0.25)
    torch.testing.assert_close(l1(a, b), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(l2(a, b), torch.tensor([0.25, 0.25]))
    torch.testing.assert_close(l2_32(a, b), torch.tensor([0.25, 0.25]))
    torch.testing.assert_close(pseudo_huber(a, b), torch.full((2,), 0.5 * math.sqrt(3 * 64 * 64)))


def test_l2_32_is_l2_at_32_pixels_and_ignores_what_the_resize_drops():
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 2, 3, 32, 32, generator=generator)
    assert torch.equal(l2_32(a, b), l2(a, b))
    # Halving averages 2 x 2 pixels, so a checkerboard vanishes.
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1
    assert float(l2_32(board.expand(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))) == 0


@pytest.mark.parametrize("c", [1e-3, 0.03, 2.0])
def test_pseudo_huber_is_on_the_norm_of_the_whole_image(pair, c):
    a, b = pair
    norm = (a - b).flatten(1).norm(dim=1)
    torch.testing.assert_close(pseudo_huber(a, b, c), (norm**2 + c**2).sqrt() - c)


def test_pseudo_huber_is_quadratic_below_c_without_cancellation():
    a = torch.zeros(1, 1, 1, 1)
    # fp32 sqrt(s + c^2) - c would be 0 here.
    assert float(pseudo_huber(a, a + 1e-6, 0.03)) == pytest.approx(1e-12 / 0.06, rel=1e-5, abs=0)


def test_pseudo_huber_c_of_the_paper():
    assert pseudo_huber_c(3 * 32 * 32) == pytest.approx(0.00054 * 55.4256, rel=1e-5)
