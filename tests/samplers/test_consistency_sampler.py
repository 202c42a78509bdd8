import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unistep.core.noise import karras_sigmas
from unistep.core.parameterization import ConsistencyScaling, Preconditioned, expand
from unistep.core.random import ImageRandom, image_seed
from unistep.errors import UserError
from unistep.samplers.consistency import renoise, sample_multistep, sample_onestep, sigmas_from_indices

MU, S, SIGMA_MIN = 0.2, 0.5, 0.002


def gaussian(x, sigma, class_labels=None):
    """The consistency function of data N(MU, S^2), in closed form."""
    return MU + expand(((S**2 + SIGMA_MIN**2) / (S**2 + sigma**2)).sqrt(), 4) * (x - MU)


class Recorded:
    def __init__(self):
        self.calls = []

    def __call__(self, x, sigma, class_labels=None, /):
        self.calls.append((x, sigma, class_labels))
        return torch.zeros_like(x)


def noise_of(images: int) -> ImageRandom:
    return ImageRandom([image_seed(0, i) for i in range(images)])


def test_onestep_is_one_evaluation_at_sigma_max():
    denoiser, x_T, labels = Recorded(), 80 * noise_of(2).randn(3, 4, 4), torch.tensor([1, 2])
    sample_onestep(denoiser, x_T, 80.0, labels)
    [(x, sigma, class_labels)] = denoiser.calls
    assert x is x_T and sigma.tolist() == [80, 80] and class_labels is labels


def test_multistep_with_one_level_is_onestep(toy):
    denoiser, x_T = Preconditioned(toy("online"), ConsistencyScaling()), noise_of(2).randn(3, 4, 4)
    assert torch.equal(
        sample_multistep(denoiser, x_T, [80.0], random=noise_of(2)), sample_onestep(denoiser, 80 * x_T, 80.0)
    )


def test_multistep_noises_to_each_level():
    denoiser, x_T, labels = Recorded(), noise_of(2).randn(3, 4, 4), torch.tensor([1, 2])
    sample_multistep(denoiser, x_T, [80.0, 5.0, 0.3], labels, random=noise_of(2), sigma_min=0.1)
    replay = noise_of(2)
    expected = [80 * x_T] + [replay.randn(3, 4, 4) * math.sqrt(s**2 - 0.1**2) for s in (5.0, 0.3)]
    assert len(denoiser.calls) == 3
    for (x, sigma, class_labels), x_expected, level in zip(denoiser.calls, expected, (80.0, 5.0, 0.3), strict=True):
        torch.testing.assert_close(x, x_expected)
        torch.testing.assert_close(sigma, torch.full((2,), level))
        assert class_labels is labels


@pytest.mark.parametrize("sigmas", [[80.0], [80.0, 0.661], [80.0, 24.4, 5.84, 0.9, 0.661]])
def test_samples_have_the_data_distribution_with_any_number_of_steps(sigmas):
    source = noise_of(64)
    out = sample_multistep(gaussian, source.randn(3, 16, 16), sigmas, random=source, clip=False)
    # One step starts at N(0, 80^2) where the trajectories of the data are at N(MU, S^2 + 80^2).
    assert float(out.mean()) == pytest.approx(MU, abs=0.01)
    assert float(out.std()) == pytest.approx(S, rel=0.02)


@pytest.mark.parametrize("last", [SIGMA_MIN * 1.0001, SIGMA_MIN, SIGMA_MIN * 0.999, 1e-4, 0.0])
def test_levels_at_the_end_of_the_trajectory_give_no_nan(last, toy):
    denoiser, x_T = Preconditioned(toy("online"), ConsistencyScaling()), noise_of(2).randn(3, 4, 4)
    without = sample_multistep(denoiser, x_T, [80.0, 1.0], random=noise_of(2))
    out = sample_multistep(denoiser, x_T, [80.0, 1.0, last], random=noise_of(2))
    torch.testing.assert_close(out, without, rtol=0, atol=1e-3)


def test_a_model_whose_sigma_min_is_above_the_last_level_gives_no_nan(toy):
    denoiser = Preconditioned(toy("online"), ConsistencyScaling(sigma_min=0.0021))
    out = sample_multistep(denoiser, noise_of(2).randn(3, 4, 4), [80.0, 0.002], random=noise_of(2), sigma_min=0.0021)
    assert out.isfinite().all()


def test_the_last_level_costs_no_evaluation_and_no_draw():
    denoiser, source = Recorded(), noise_of(2)
    sample_multistep(denoiser, noise_of(2).randn(3, 4, 4), [80.0, SIGMA_MIN], random=source)
    assert len(denoiser.calls) == 1
    assert torch.equal(source.randn(3), noise_of(2).randn(3))


@given(st.floats(0, 100), st.floats(0, 1))
def test_renoise_adds_the_missing_variance(sigma, sigma_min):
    added = float(renoise(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), sigma, sigma_min))
    assert added**2 == pytest.approx(max(sigma**2 - sigma_min**2, 0), rel=1e-5, abs=1e-12)


def test_images_do_not_depend_on_their_batch(toy):
    denoiser, x_T = Preconditioned(toy("online"), ConsistencyScaling()), noise_of(5).randn(3, 8, 8)

    def sample(rows: list[int]) -> torch.Tensor:
        source = ImageRandom([image_seed(1, i) for i in rows])
        return sample_multistep(denoiser, x_T[rows], [80.0, 5.0, 0.5], random=source)

    together = sample([0, 1, 2, 3, 4])
    torch.testing.assert_close(torch.cat([sample([3]), sample([4, 0])]), together[[3, 4, 0]], rtol=1e-6, atol=1e-6)


def test_clipping_is_optional(toy):
    def large(x, sigma, class_labels=None):
        return 3 * torch.ones_like(x)

    x_T = noise_of(1).randn(3, 4, 4)
    for clip, value in ((True, 1.0), (False, 3.0)):
        out = sample_multistep(large, x_T, [80.0, 1.0], random=noise_of(1), clip=clip)
        assert torch.equal(out, torch.full_like(x_T, value))
        assert torch.equal(sample_onestep(large, x_T, clip=clip), torch.full_like(x_T, value))


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([], r"`sigmas` \[\] must start at sigma_max 80"),
        ([1.38, 0.5], r"`sigmas` \[1.38, 0.5\] must start at sigma_max 80"),
        ([80.0, 5.0, 5.0], "must descend strictly"),
        ([80.0, 5.0, 6.0], "must descend strictly"),
        ([80.0, math.nan], "must descend strictly"),
        ([80.0, -1.0], "not fall below 0"),
    ],
)
def test_wrong_levels_are_one_clear_line(sigmas, message):
    with pytest.raises(UserError, match=message) as error:
        sample_multistep(gaussian, torch.zeros(1, 1, 2, 2), sigmas, random=noise_of(1))
    assert "\n" not in str(error.value)


def test_levels_that_went_through_fp32_are_accepted():
    sigma_max = 80.1
    sigmas = [float(torch.tensor(sigma_max)), 1.0]
    assert sigmas[0] != sigma_max
    out = sample_multistep(gaussian, torch.zeros(1, 1, 2, 2), sigmas, random=noise_of(1), sigma_max=sigma_max)
    assert out.isfinite().all()


@given(st.lists(st.integers(1, 39), unique=True, max_size=6))
def test_indices_name_levels_of_the_grid(indices):
    timesteps = [0, *sorted(indices)]
    sigmas = sigmas_from_indices(timesteps, 40)
    torch.testing.assert_close(torch.tensor(sigmas), karras_sigmas(40)[timesteps], rtol=1e-5, atol=0)
    assert sigmas[0] == 80.0 and sigmas == sorted(sigmas, reverse=True)
    assert timesteps[-1] != 39 or sigmas[-1] == 0.002


@pytest.mark.parametrize(
    ("timesteps", "num_scales", "message"),
    [
        ([], 40, "must start with 0"),
        ([39, 22], 40, r"`timesteps` \[39, 22\] must start with 0"),
        ([0, 22, 22], 40, "must increase"),
        ([0, 22, 12], 40, "must increase"),
        ([0, 40], 40, "must be below 40"),
        ([0, 1], 1, "must be below 1"),
    ],
)
def test_wrong_indices_are_one_clear_line(timesteps, num_scales, message):
    with pytest.raises(UserError, match=message) as error:
        sigmas_from_indices(timesteps, num_scales)
    assert "\n" not in str(error.value)


def test_a_grid_of_one_level():
    assert sigmas_from_indices([0], 1) == [80.0]
