"""Encoding images of Gaussian data N(mu, s^2), on whose trajectories all is known:

D(x, t) = mu + s^2/(s^2 + t^2) (x - mu),   x_r = mu + sqrt((s^2 + r^2)/(s^2 + t^2)) (x_t - mu)
"""

import math

import pytest
import torch

from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom, image_seed
from unistep.editing.encoding import encode
from unistep.errors import UserError
from unistep.samplers.heun import heun

MU, S = 0.1, 0.3


def gaussian(x, sigma, class_labels=None):
    return MU + expand(S**2 / (S**2 + sigma**2), 4) * (x - MU)


def mixture(x, sigma, class_labels=None):
    """Pixels that are black or white, with a spread of 0.1."""
    variance = expand(0.01 + sigma**2, 4)
    mean = 0.8 * torch.tanh(0.8 * x / variance)
    return mean + 0.01 / variance * (x - mean)


@pytest.fixture
def x(generator):
    return (MU + S * torch.randn(2, 1, 6, 6, generator=generator, dtype=torch.float64)).clamp(-1, 1)


def test_converges_to_the_trajectory_in_second_order(x):
    exact = (MU + math.sqrt((S**2 + 80**2) / (S**2 + 0.002**2)) * (x - MU)) / 80
    errors = [float((encode(gaussian, x, n) - exact).norm() / exact.norm()) for n in (32, 64, 128, 256)]
    rates = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert all(rate == pytest.approx(2, abs=0.25) for rate in rates), (errors, rates)
    assert errors[-1] < 1e-3


@pytest.mark.parametrize(("steps", "tolerance"), [(18, 0.02), (40, 0.002), (160, 5e-5)])
def test_sampler_returns_to_the_image(x, steps, tolerance):
    assert (heun(gaussian, encode(gaussian, x, steps), steps) - x).abs().max() < tolerance


@pytest.mark.parametrize(("denoiser", "refinements"), [(gaussian, 40), (mixture, 100)])
def test_refined_it_is_the_sampler_s_inverse(x, denoiser, refinements):
    x = x if denoiser is gaussian else 0.8 * x.sign() + 0.1 * (x - MU)
    z = encode(denoiser, x, 18, refinements=refinements)
    torch.testing.assert_close(heun(denoiser, z, 18), x, rtol=0, atol=1e-6)


def test_every_refinement_draws_closer(x):
    errors = [float((heun(gaussian, encode(gaussian, x, 18, refinements=k), 18) - x).norm()) for k in range(4)]
    assert all(b < 0.7 * a for a, b in zip(errors[:-1], errors[1:], strict=True)), errors


def test_noise_of_the_first_level_makes_constant_images_gaussian():
    # All images of this data are black: nothing but the noise itself comes from noise.
    def black(x, sigma, class_labels=None):
        return torch.full_like(x, -1)

    image = -torch.ones(2, 1, 32, 32)
    assert encode(black, image).abs().max() < 0.02
    z = encode(black, image, random=ImageRandom([image_seed(0, i) for i in range(2)]))
    unit = ImageRandom([image_seed(0, i) for i in range(2)]).randn(1, 32, 32)
    torch.testing.assert_close(z, unit - 1 / 80, rtol=1e-3, atol=2e-3)


def test_labels_levels_and_number_of_evaluations(x):
    labels, seen = torch.tensor([3, 4]), []

    def watch(x_t, sigma, class_labels=None):
        assert class_labels is labels
        seen.append(float(sigma[0]))
        return gaussian(x_t, sigma)

    encode(watch, x, 5, labels)
    assert len(seen) == 8 and seen[0] == pytest.approx(0.002) and seen[-1] == pytest.approx(80)
    assert seen == sorted(seen)
    seen.clear()
    encode(watch, x, 5, labels, refinements=2)
    assert len(seen) == 8 + 2 * 9


def test_clamps_as_the_sampler_does(x):
    def bold(x_t, sigma, class_labels=None):
        return 3 * gaussian(x_t, sigma)

    assert not torch.allclose(encode(bold, x, 18), encode(bold, x, 18, clip=False))


def test_one_step_is_too_few(x):
    with pytest.raises(UserError, match="at least 2 steps, not 1"):
        encode(gaussian, x, 1)
