import numpy as np
import pytest
import torch

from unistep.core.pixels import to_float, to_uint8
from unistep.data.bundled import BUNDLED
from unistep.editing.noise_level import clipped_moments, estimate_noise
from unistep.errors import UserError


@pytest.fixture(scope="module")
def digits():
    with np.load(BUNDLED["mnist"].path) as arrays:
        return to_float(torch.from_numpy(arrays["test_images"][:100]).reshape(-1, 1, 28, 28))


def noisy(x, sigma, seed=0):
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def as_from_a_file(x):
    return to_float(to_uint8(x))


@pytest.mark.parametrize("sigma", [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
def test_digits_with_free_noise(digits, sigma):
    # A median over all windows, edges and all, is 40% too high at 0.01 and 20% at 0.1.
    found = estimate_noise(noisy(digits, sigma))
    assert float(found.mean()) == pytest.approx(sigma, rel=0.03)
    assert float(found.std()) < 0.11 * sigma


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2, 0.5])
def test_digits_whose_background_cut_half_of_the_noise_off(digits, sigma):
    # Taken for free noise, it would be found 20% to 60% too low.
    found = estimate_noise(as_from_a_file(noisy(digits, sigma)))
    assert float(found.mean()) == pytest.approx(sigma, rel=0.1)
    assert float(found.std()) < 0.2 * sigma


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("cut", [False, True])
def test_a_colour_ramp_with_hard_edges(sigma, cut):
    ramp = torch.linspace(-0.9, 0.9, 64).expand(8, 3, 64, 64).clone()
    ramp[:, :, 20:30, 10:40] = torch.tensor([-0.5, 0.9, 0.1])[:, None, None]
    x = noisy(ramp, sigma)
    found = estimate_noise(as_from_a_file(x) if cut else x)
    assert float(found.mean()) == pytest.approx(sigma, rel=0.06 if cut else 0.03)


def test_an_image_without_noise(digits):
    assert estimate_noise(digits).max() < 1e-3
    assert estimate_noise(torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)).max() < 1e-3


def test_every_image_by_itself(digits):
    x = noisy(digits[:3], 1.0) * torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1, 1)
    together = estimate_noise(x)
    torch.testing.assert_close(together, torch.cat([estimate_noise(one) for one in x.split(1)]))
    assert together.shape == (3,) and together.dtype == torch.float32


def test_turning_and_inverting_change_nothing(digits):
    x = as_from_a_file(noisy(digits[:20], 0.2))
    found = estimate_noise(x)
    torch.testing.assert_close(estimate_noise(x.flip(-1).transpose(2, 3)), found, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(estimate_noise(-x), found, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0])
def test_clipped_moments(sigma, generator):
    m = torch.tensor([-1.0, -0.7, 0.0, 0.4, 1.0])
    samples = (m + sigma * torch.randn(400_000, 1, generator=generator)).clamp(-1, 1)
    mean, spread = clipped_moments(m, torch.tensor([sigma]))
    torch.testing.assert_close(mean[0], samples.mean(0), rtol=0, atol=0.006 * sigma)
    torch.testing.assert_close(spread[0], samples.std(0), rtol=0.01, atol=0)


def test_moments_of_noise_too_small_to_be_clipped():
    mean, spread = clipped_moments(torch.tensor([-1.0, 0.5]), torch.tensor([1e-4]))
    assert float(mean[0, 1]) == pytest.approx(0.5) and float(spread[0, 1]) == pytest.approx(1e-4, rel=1e-3)
    assert float(spread[0, 0]) == pytest.approx(0.5838e-4, rel=1e-2)  # sqrt(1/2 - 1/(2 pi))


def test_too_small():
    assert estimate_noise(torch.zeros(1, 1, 4, 4)).tolist() == [0]
    with pytest.raises(UserError, match="3x9 pixels are too small"):
        estimate_noise(torch.zeros(1, 1, 3, 9))
