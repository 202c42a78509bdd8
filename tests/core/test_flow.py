"""Flow time and noise levels are two names of one process."""

import pytest
import torch

from unistep.core import flow
from unistep.core.parameterization import expand


def test_times_and_levels():
    sigma = torch.tensor([0.0, 0.002, 1.0, 80.0], dtype=torch.float64)
    t = flow.time_of(sigma)
    torch.testing.assert_close(t, torch.tensor([0.0, 0.002 / 1.002, 0.5, 80 / 81], dtype=torch.float64))
    torch.testing.assert_close(flow.sigma_of(t), sigma)


def test_one_process_and_one_function(generator):
    x, n, D = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma, end = torch.tensor([[0.1, 2.0, 80.0], [0.05, 0.3, 0.0]], dtype=torch.float64)
    t, r = flow.time_of(sigma), flow.time_of(end)
    z, x_sigma = flow.mixed(x, n, t), x + expand(sigma, 4) * n
    torch.testing.assert_close(z, expand(1 - t, 4) * x_sigma)
    u = flow.velocity(z, t, D)
    torch.testing.assert_close(flow.denoised(z, t, u), D)
    torch.testing.assert_close(flow.velocity(z, t, x), n - x)
    # A jump by u in flow time is Euler's step by D in noise levels.
    jumped = z - expand(t - r, 4) * u
    share = expand(end / sigma, 4)
    torch.testing.assert_close(jumped / expand(1 - r, 4), share * x_sigma + (1 - share) * D)


def test_at_pure_noise_there_is_no_level():
    assert float(flow.sigma_of(torch.tensor(1.0))) == pytest.approx(float("inf"))
