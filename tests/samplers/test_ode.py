"""The samplers on Gaussian data N(mu, s^2), whose denoiser and whose trajectories are known in closed form:

D(x, t) = mu + s^2/(s^2 + t^2) (x - mu),   x_r = mu + sqrt((s^2 + r^2)/(s^2 + t^2)) (x_t - mu)
"""

import math

import pytest
import torch

from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom, image_seed
from unistep.errors import UserError
from unistep.samplers.ancestral import ancestral
from unistep.samplers.dpm2 import dpm2
from unistep.samplers.euler import euler
from unistep.samplers.heun import heun
from unistep.samplers.ode import Churn
from unistep.samplers.progressive import progressive

MU, S = 0.2, 0.5


def gaussian(x, sigma, class_labels=None):
    return MU + expand(S**2 / (S**2 + sigma**2), 4) * (x - MU)


def solution(x_T: torch.Tensor, r: float, sigma_max: float = 80.0) -> torch.Tensor:
    return MU + math.sqrt((S**2 + r**2) / (S**2 + sigma_max**2)) * (x_T * sigma_max - MU)


class Counted:
    def __init__(self, denoiser=gaussian):
        self.denoiser, self.calls = denoiser, []

    def __call__(self, x, sigma, class_labels=None, /):
        self.calls.append((x, sigma, class_labels))
        return self.denoiser(x, sigma, class_labels)


@pytest.fixture
def x_T(generator):
    return torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)


def noise_of(seeds: int) -> ImageRandom:
    return ImageRandom([image_seed(0, i) for i in range(seeds)])


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (dpm2, 2), (progressive, 1)])
def test_order_of_convergence(sampler, order, x_T):
    # sigma_min so small that the step from it to 0 does not show.
    sigma_min = 1e-4
    end = sigma_min if sampler is progressive else 0.0
    exact = solution(x_T, end)
    errors = []
    for n in (64, 128, 256, 512):
        out = sampler(gaussian, x_T, n, sigma_min=sigma_min, clip=False)
        errors.append(float((out - exact).norm() / exact.norm()))
    rates = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert all(rate == pytest.approx(order, abs=0.25) for rate in rates), (errors, rates)
    assert errors[-1] < {1: 2e-2, 2: 2e-4}[order]


@pytest.mark.parametrize(("sampler", "nfe"), [(euler, 6), (heun, 11), (dpm2, 12), (ancestral, 6), (progressive, 6)])
def test_number_of_evaluations_and_labels(sampler, nfe, x_T):
    denoiser, labels = Counted(), torch.tensor([7, 8])
    extra = {"noise": noise_of(2)} if sampler is ancestral else {}
    out = sampler(denoiser, x_T, 6, labels, **extra)
    assert len(denoiser.calls) == nfe
    assert all(call[2] is labels for call in denoiser.calls)
    levels = [float(call[1][0]) for call in denoiser.calls]
    assert levels[0] == 80 and levels == sorted(levels, reverse=True) and levels[-1] > 0
    assert out.shape == x_T.shape and out.dtype == x_T.dtype


@pytest.mark.parametrize("sampler", [euler, heun, dpm2, progressive])
@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_work(sampler, steps, x_T):
    out = sampler(gaussian, x_T, steps)
    assert out.isfinite().all() and out.abs().max() <= 1


@pytest.mark.parametrize("sampler", [euler, heun, dpm2, progressive])
def test_no_steps_is_an_error(sampler, x_T):
    with pytest.raises(UserError, match="at least one step, not 0"):
        sampler(gaussian, x_T, 0)


def test_heun_with_one_step_is_the_denoised_noise(x_T):
    torch.testing.assert_close(
        heun(gaussian, x_T, 1, clip=False), gaussian(80 * x_T, torch.full((2,), 80.0, dtype=torch.float64))
    )


def test_clipping_is_optional(x_T):
    def large(x, sigma, class_labels=None):
        return 3 * torch.ones_like(x)

    torch.testing.assert_close(euler(large, x_T, 5), torch.ones_like(x_T))
    torch.testing.assert_close(euler(large, x_T, 5, clip=False), 3 * torch.ones_like(x_T))


@pytest.mark.parametrize(
    "sample",
    [
        lambda x, noise, steps: ancestral(gaussian, x, 2 * steps, noise=noise, clip=False),
        lambda x, noise, steps: heun(gaussian, x, steps, churn=Churn(noise, s_churn=20), clip=False),
        lambda x, noise, steps: dpm2(
            gaussian, x, steps, churn=Churn(noise, s_churn=20, s_tmin=0.01, s_tmax=50), clip=False
        ),
    ],
    ids=["ancestral", "heun-churn", "dpm2-churn"],
)
def test_stochastic_samplers_approach_the_data_distribution(sample):
    spread = {}
    for steps in (20, 160):
        source = noise_of(64)
        out = sample(source.randn(3, 8, 8), source, steps)
        assert float(out.mean()) == pytest.approx(MU, abs=0.02)
        spread[steps] = float(out.std())
    assert spread[160] == pytest.approx(S, rel=0.03)
    assert abs(spread[20] - S) > 2 * abs(spread[160] - S)


def test_fresh_noise_is_really_used():
    x_T = noise_of(2).randn(3, 8, 8)
    for sample in (
        lambda noise: ancestral(gaussian, x_T, 10, noise=noise, clip=False),
        lambda noise: heun(gaussian, x_T, 10, churn=Churn(noise, s_churn=10), clip=False),
    ):
        a, again, b = (sample(ImageRandom(seeds)) for seeds in ([1, 2], [1, 2], [1, 3]))
        assert torch.equal(a, again)
        assert torch.equal(a[0], b[0]) and not torch.allclose(a[1], b[1], atol=1e-2)


def test_ancestral_draws_once_a_step_but_the_last():
    source, replay = noise_of(2), noise_of(2)
    ancestral(gaussian, noise_of(2).randn(3, 8, 8), 5, noise=source)
    for _ in range(4):
        replay.randn(3, 8, 8)
    assert torch.equal(source.randn(1), replay.randn(1))


def test_images_do_not_depend_on_their_batch():
    x_T = noise_of(5).randn(3, 8, 8)

    def sample(rows: list[int]) -> torch.Tensor:
        source = ImageRandom([image_seed(1, i) for i in rows])
        return heun(gaussian, x_T[rows], 6, churn=Churn(source, s_churn=5))

    together = sample([0, 1, 2, 3, 4])
    torch.testing.assert_close(torch.cat([sample([3]), sample([4, 0])]), together[[3, 4, 0]], rtol=1e-6, atol=1e-6)


def test_churn_outside_its_levels_changes_nothing_but_takes_its_draws():
    x_T = noise_of(2).randn(3, 8, 8)
    source = noise_of(2)
    out = heun(gaussian, x_T, 7, churn=Churn(source, s_churn=10, s_tmin=100), clip=False)
    assert torch.equal(out, heun(gaussian, x_T, 7, clip=False))
    replay = noise_of(2)
    for _ in range(7):
        replay.randn(3, 8, 8)
    assert torch.equal(source.randn(1), replay.randn(1))


def test_churn_without_noise_is_an_error():
    with pytest.raises(TypeError, match="noise"):
        Churn(s_churn=10)


def test_gradients_flow(x_T):
    x_T.requires_grad_()
    heun(gaussian, x_T, 3, clip=False).sum().backward()
    assert x_T.grad is not None and x_T.grad.abs().min() > 0
