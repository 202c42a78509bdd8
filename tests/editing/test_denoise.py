"""Denoising Gaussian data N(mu, s^2), whose denoiser and whose consistency function are known in closed form:

D(x, t) = mu + s^2/(s^2 + t^2) (x - mu),   f(x, t) = mu + sqrt((s^2 + sigma_min^2)/(s^2 + t^2)) (x - mu)
"""

import math

import pytest
import torch

from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom, image_seed
from unistep.editing.methods.denoise import denoise, restore_clipped
from unistep.editing.noise_level import estimate_noise
from unistep.errors import UserError

MU, S, SIGMA_MIN = 0.1, 0.2, 0.002


def diffusion(x, sigma, class_labels=None):
    return MU + expand(S**2 / (S**2 + sigma**2), 4) * (x - MU)


def consistency(x, sigma, class_labels=None):
    return MU + expand(((S**2 + SIGMA_MIN**2) / (S**2 + sigma**2)).sqrt(), 4) * (x - MU)


def noise_of(images, seed=0):
    return ImageRandom([image_seed(seed, i) for i in range(images)])


@pytest.fixture
def x(generator):
    return MU + S * torch.randn(3, 1, 64, 64, generator=generator)


@pytest.fixture
def noise(generator):
    return torch.randn(3, 1, 64, 64, generator=generator)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_result_is_of_the_data_s_distribution(x, noise, steps):
    out = denoise(consistency, x + 0.5 * noise, 0.5, steps=steps, random=noise_of(3), clip=False)
    assert float(out.mean()) == pytest.approx(MU, abs=0.01)
    assert float(out.std()) == pytest.approx(math.sqrt(S**2 + SIGMA_MIN**2), rel=0.02)


def test_mean_square_error_is_the_least_there_is(x, noise):
    out = denoise(diffusion, x + 0.3 * noise, 0.3, clip=False)
    assert float((out - x).square().mean()) == pytest.approx(1 / (1 / S**2 + 1 / 0.3**2), rel=0.03)


def test_every_image_has_its_own_level_and_its_own_noise(x, noise):
    sigma = torch.tensor([0.001, 0.3, 2.0])
    x = x + expand(sigma, 4) * noise
    together = denoise(consistency, x, sigma, steps=3, random=noise_of(3))
    for i in range(3):
        alone = denoise(consistency, x[i : i + 1], sigma[i : i + 1], steps=3, random=ImageRandom([image_seed(0, i)]))
        torch.testing.assert_close(together[i], alone[0])


def test_levels_and_labels_of_the_evaluations(x):
    seen, labels = [], torch.tensor([3, 4, 5])

    def watch(x_t, sigma, class_labels=None):
        assert class_labels is labels and x_t.abs().max() < 10
        seen.append(sigma.tolist())
        return consistency(x_t, sigma)

    denoise(watch, x, torch.tensor([0.5, 1.0, 0.0]), labels, steps=3, random=noise_of(3))
    assert [level[:2] for level in seen][0] == [0.5, 1.0] and len(seen) == 3
    assert [level[0] for level in seen] == sorted((level[0] for level in seen), reverse=True)
    # No noise is no level that a model knows: the lowest one is.
    assert [level[2] for level in seen] == pytest.approx([SIGMA_MIN] * 3)


def test_image_without_noise_is_left_alone(x):
    x = x.clamp(-1, 1)
    torch.testing.assert_close(denoise(consistency, x, 0.0), x)
    torch.testing.assert_close(denoise(consistency, x, SIGMA_MIN / 2, steps=3, random=noise_of(3)), x)


def test_level_is_estimated_where_none_is_given(generator):
    smooth = torch.linspace(-0.5, 0.5, 64).expand(2, 1, 64, 64)
    x = smooth + torch.tensor([0.1, 0.4]).view(2, 1, 1, 1) * torch.randn(2, 1, 64, 64, generator=generator)
    seen = []

    def watch(x_t, sigma, class_labels=None):
        seen.append(sigma)
        return x_t

    denoise(watch, x)
    assert torch.equal(seen[0], estimate_noise(x))
    assert seen[0].tolist() == pytest.approx([0.1, 0.4], rel=0.05)


def test_half_precision_keeps_its_dtype_and_exact_levels(x):
    levels = []

    def watch(x_t, sigma, class_labels=None):
        levels.append(sigma)
        return x_t

    out = denoise(watch, x.to(torch.bfloat16), 0.3, steps=2, random=noise_of(3))
    assert (
        out.dtype == torch.bfloat16 and levels[0].dtype == torch.float32 and float(levels[0][0]) == pytest.approx(0.3)
    )


@pytest.mark.parametrize("sigma", [-0.1, 80.5, math.nan, math.inf])
def test_impossible_levels(x, sigma):
    with pytest.raises(UserError, match="sigma .* must lie between 0 and sigma_max 80"):
        denoise(consistency, x, torch.tensor([0.5, sigma, 0.5]))
    with pytest.raises(UserError, match="sigma .* must lie between"):
        denoise(consistency, x, sigma)


def test_further_steps_need_noise(x):
    with pytest.raises(ValueError, match="noise source"):
        denoise(consistency, x, 0.5, steps=2)


def test_restored_noise_of_black_and_white_is_gaussian(generator):
    sigma = torch.tensor([0.1, 0.5])
    clean = torch.tensor([-1.0, 1.0, 0.0]).expand(2, 1, 20_000, 3)
    noisy = clean + expand(sigma, 4) * torch.randn(clean.shape, generator=generator)
    cut = noisy.clamp(-1, 1)
    out = restore_clipped(cut, sigma, torch.randn(clean.shape, generator=generator))
    inside = cut.abs() < 1
    assert torch.equal(out[inside], cut[inside])
    for i in range(2):
        n = (out - clean)[i, 0, :, :2] / sigma[i]
        assert n.mean(0).abs().max() < 0.03 and (n.std(0) - 1).abs().max() < 0.02
        assert (n.abs().median(0).values - 0.6745).abs().max() < 0.02
