"""Averages by power functions: their length, the recursion against the integral, and others made of snapshots."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unistep.training.power_average import PowerAverages, Profile, combination, exponent, relative_length


@given(st.floats(0.001, 0.28))
def test_exponent_and_length_are_inverse(length):
    assert relative_length(exponent(length)) == pytest.approx(length, rel=1e-9)


def test_published_exponents():
    # arXiv 2312.02696, section 3: lengths of 5% and 10% have gamma 16.97 and 6.94.
    assert exponent(0.05) == pytest.approx(16.97, abs=5e-3) and exponent(0.10) == pytest.approx(6.94, abs=5e-3)


@pytest.mark.parametrize("length", [0.02, 0.1, 0.25])
def test_length_is_the_deviation_of_the_profile(length):
    gamma, tau = exponent(length), (np.arange(200_000) + 0.5) / 200_000
    p = (gamma + 1) * tau**gamma / 200_000
    mean = (p * tau).sum()
    assert math.sqrt((p * (tau - mean) ** 2).sum()) == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize(
    ("a", "b"), [((3.0, 10.0), (3.0, 10.0)), ((16.97, 7.0), (6.94, 10.0)), ((0.5, 9.0), (20.0, 3.0))]
)
def test_scalar_product_is_the_integral(a, b):
    one, other = Profile(*a), Profile(*b)
    tau = (np.arange(400_000) + 0.5) / 400_000 * max(one.time, other.time)

    def values(p):
        return np.where(tau < p.time, (p.gamma + 1) * (tau / p.time) ** p.gamma / p.time, 0)

    integral = (values(one) * values(other)).mean() * max(one.time, other.time)
    assert one.dot(other) == pytest.approx(integral, rel=1e-4) and one.dot(other) == other.dot(one)


def test_long_trainings_and_short_lengths_stay_in_the_range_of_numbers():
    profile = Profile(exponent(0.001), 1e7)
    assert 0 < profile.dot(profile) < math.inf


def _trained(lengths, steps, begun=0):
    """Averages of a weight that is the number of its step, and all its values."""
    module, values = nn.Linear(1, 1, bias=False).double(), []
    averages = PowerAverages(module, lengths, begun)
    generator, value = np.random.default_rng(0), 0.0
    for step in range(begun, begun + steps):
        value += generator.normal()
        values.append(value)
        with torch.no_grad():
            module.weight.fill_(value)
        averages.update(module, step)
    return averages, np.array(values)


@pytest.mark.parametrize("begun", [0, 37])
def test_recursion_is_the_sum_over_the_profile(begun):
    averages, values = _trained([0.05, 0.2], 500, begun)
    for length, found in averages.averages.items():
        share = (np.arange(501) / 500) ** (exponent(length) + 1)
        assert found["weight"].item() == pytest.approx((np.diff(share) * values).sum(), rel=1e-9)


def test_a_profile_of_the_snapshots_is_itself():
    snapshots = [Profile(gamma, time) for time in (100, 200, 300) for gamma in (6.94, 16.97)]
    factors, error = combination(snapshots, snapshots[3])
    assert np.allclose(factors, [0, 0, 0, 1, 0, 0], atol=1e-6) and error < 1e-6


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.2])
def test_an_average_of_any_length_comes_from_snapshots(length):
    lengths, every, steps = (0.05, 0.1), 25, 1000
    snapshots, stored, module = [], [], nn.Linear(1, 1, bias=False).double()
    averages, wanted = PowerAverages(module, lengths), PowerAverages(module, [length])
    generator = np.random.default_rng(1)
    for step in range(steps):
        with torch.no_grad():
            module.weight.add_(generator.normal())
        averages.update(module, step)
        wanted.update(module, step)
        if (step + 1) % every == 0:
            snapshots += [Profile(exponent(n), step + 1) for n in lengths]
            stored += [averages.averages[n]["weight"].item() for n in lengths]
    factors, error = combination(snapshots, Profile(exponent(length), steps))
    assert sum(factors) == pytest.approx(1, abs=1e-9) and error < 0.02
    exact = wanted.averages[length]["weight"].item()
    assert np.dot(factors, stored) == pytest.approx(exact, abs=0.02 * np.ptp(stored))


def test_a_length_that_the_snapshots_cannot_show_has_a_large_error():
    snapshots = [Profile(exponent(0.1), time) for time in (500, 1000)]
    assert combination(snapshots, Profile(exponent(0.005), 1000))[1] > 0.5


def test_a_single_snapshot_is_taken_as_it_is():
    factors, error = combination([Profile(6.94, 100)], Profile(6.0, 100))
    assert factors == [1.0] and 0 < error < 0.2
