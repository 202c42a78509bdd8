import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unistep.core.noise import (
    LogNormal,
    discretized_lognormal,
    karras_index,
    karras_sigma,
    karras_sigmas,
    pair_sigmas,
    sample_index,
)

grids = st.tuples(
    st.integers(2, 2000), st.floats(1e-4, 0.5), st.floats(1.0, 500.0), st.floats(1.0, 10.0)
)  # num, sigma_min, sigma_max, rho


@given(grids)
def test_the_grid_descends_between_exact_ends(grid):
    num, sigma_min, sigma_max, rho = grid
    sigmas = karras_sigmas(num, sigma_min, sigma_max, rho, dtype=torch.float64)
    assert len(sigmas) == num
    assert sigmas[0] == sigma_max and sigmas[-1] == sigma_min
    assert (sigmas.diff() < 0).all()


def test_the_grid_is_eq_5_of_the_edm_paper():
    sigmas = karras_sigmas(18)
    for i in range(18):
        expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert float(sigmas[i]) == pytest.approx(expected, rel=2e-6)


def test_in_fp32_the_ends_are_the_fp32_numbers():
    sigmas = karras_sigmas(40)
    assert sigmas.dtype == torch.float32
    assert sigmas[-1] == torch.tensor(0.002) and sigmas[0] == 80


def test_one_level_is_sigma_max_and_none_is_an_error():
    assert karras_sigmas(1).tolist() == [80.0]
    with pytest.raises(ValueError, match="at least one"):
        karras_sigmas(0)


@given(grids, st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_index_and_sigma_are_inverses(grid, fractions):
    num, *parameters = grid
    index = torch.tensor(fractions, dtype=torch.float64) * (num - 1)
    sigma = karras_sigma(index, num, *parameters)
    back = karras_index(sigma, num, *parameters)
    torch.testing.assert_close(back, index, rtol=0, atol=1e-9 * num)
    torch.testing.assert_close(karras_sigma(back, num, *parameters), sigma, rtol=1e-9, atol=0)


@pytest.mark.parametrize("num", [2, 18, 151, 1281])
def test_fp32_indices_round_to_the_integers_they_came_from(num):
    index = torch.arange(num)
    sigma = karras_sigma(index, num)
    assert torch.equal(sigma, karras_sigmas(num))
    assert torch.equal(karras_index(sigma, num).round().long(), index)


def test_every_image_may_have_its_own_number_of_levels():
    index, num = torch.tensor([0, 1, 1, 17]), torch.tensor([2, 2, 3, 18])
    expected = [karras_sigmas(int(n))[int(i)] for i, n in zip(index, num, strict=True)]
    assert torch.equal(karras_sigma(index, num), torch.stack(expected))
    torch.testing.assert_close(karras_index(karras_sigma(index, num), num), index.float())


def test_pairs_are_neighbours():
    sigmas = karras_sigmas(40)
    t, r = pair_sigmas(torch.arange(39), 40)
    assert torch.equal(t, sigmas[:-1]) and torch.equal(r, sigmas[1:])


def test_lognormal(generator):
    normal = torch.randn(20_000, generator=generator)
    sigma = LogNormal(-1.1, 2.0).sample(normal)
    assert (sigma > 0).all()
    assert abs(sigma.log().mean() + 1.1) < 0.05 and abs(sigma.log().std() - 2) < 0.05
    assert torch.equal(LogNormal(0.3, 0.0).sample(normal), torch.tensor(0.3).exp().expand(20_000))


@given(st.integers(2, 1281), st.floats(-3, 1), st.floats(0.3, 3))
def test_discretized_lognormal_is_a_distribution(num, P_mean, P_std):
    p = discretized_lognormal(num, P_mean, P_std)
    assert p.shape == (num - 1,)
    assert (p >= 0).all() and float(p.sum()) == pytest.approx(1)


def test_discretized_lognormal_is_the_mass_between_the_levels():
    sigmas, p = karras_sigmas(11, dtype=torch.float64), discretized_lognormal(11, -1.1, 2.0)

    def below(sigma: float) -> float:
        return 0.5 * math.erfc(-(math.log(sigma) + 1.1) / (2.0 * math.sqrt(2)))

    mass = [below(float(t)) - below(float(r)) for t, r in zip(sigmas[:-1], sigmas[1:], strict=True)]
    torch.testing.assert_close(p, torch.tensor(mass, dtype=torch.float64) / sum(mass), rtol=1e-9, atol=1e-15)


def test_discretized_lognormal_needs_a_pair():
    with pytest.raises(ValueError, match="at least two"):
        discretized_lognormal(1)


def test_sample_index_inverts_the_cumulative_sum():
    p = torch.tensor([0.25, 0.0, 0.5, 0.25])
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999999])
    assert sample_index(p, uniform).tolist() == [0, 0, 2, 2, 3, 3]


def test_sample_index_has_the_given_frequencies(generator):
    p = discretized_lognormal(12, -1.1, 2.0)
    index = sample_index(p, torch.rand(40_000, generator=generator))
    frequency = torch.bincount(index, minlength=11) / 40_000
    assert (frequency - p).abs().max() < 0.01


@given(st.floats(0, 1, exclude_max=True, width=32), st.integers(2, 1281), st.floats(-6, 5), st.floats(0.1, 3))
def test_sample_index_stays_in_range(uniform, num, P_mean, P_std):
    index = sample_index(discretized_lognormal(num, P_mean, P_std), torch.tensor([uniform]))
    assert 0 <= int(index) <= num - 2
