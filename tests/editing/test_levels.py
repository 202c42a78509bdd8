import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unistep.core.noise import karras_sigmas
from unistep.editing.levels import levels_below, sigma_of_strength, strength_of_sigma
from unistep.errors import UserError


def test_levels_are_those_of_the_grid_from_each_image_s_own():
    levels = levels_below(torch.tensor([80.0, 0.5]), 4)
    for i, sigma in enumerate((80.0, 0.5)):
        torch.testing.assert_close(levels[:, i], karras_sigmas(5, 0.002, sigma)[:-1])
    assert levels[0].tolist() == [80.0, 0.5]


def test_levels_at_or_below_sigma_min_stay():
    assert (levels_below(torch.tensor([0.001]), 3, 0.002) - 0.001).abs().max() < 1e-9
    assert levels_below(torch.tensor([0.5]), 3, 0.0).isfinite().all()


@given(st.floats(0, 1), st.sampled_from([0.0, 0.002]), st.sampled_from([1.0, 7.0]))
def test_strength_and_sigma_are_inverse(strength, sigma_min, rho):
    sigma = sigma_of_strength(strength, sigma_min, 80.0, rho)
    assert sigma_min <= sigma <= 80
    assert strength_of_sigma(sigma, sigma_min, 80.0, rho) == pytest.approx(strength, abs=1e-9)


def test_strength_counts_the_steps_of_the_grid():
    grid = karras_sigmas(11, dtype=torch.float64)
    for i in range(11):
        assert math.isclose(sigma_of_strength(1 - i / 10), float(grid[i]), rel_tol=1e-9)


@pytest.mark.parametrize("strength", [-0.01, 1.01, math.nan])
def test_strength_out_of_range(strength):
    with pytest.raises(UserError, match=r"^`strength` .* 0.* and 1"):
        sigma_of_strength(strength)


@pytest.mark.parametrize("sigma", [0.001, 80.1, math.nan])
def test_level_out_of_range(sigma):
    with pytest.raises(UserError, match="noise level .* sigma_max 80"):
        strength_of_sigma(sigma)


def test_no_steps():
    with pytest.raises(UserError, match="`steps` 0 must be at least 1"):
        levels_below(torch.ones(1), 0)
