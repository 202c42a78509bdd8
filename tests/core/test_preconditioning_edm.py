"""The scalings of VP, VE and iDDPM models against table 1 of Karras et al. 2022."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from unistep.core.parameterization import IDDPMScaling, Preconditioned, Scaling, VEScaling, VPScaling
from unistep.errors import UserError
from unistep.formats.model import ModelInfo, scaling_of


class Oracle(nn.Module):
    """The network that has learnt its target: the noise, or for VE the noise with the sign changed."""

    def __init__(self, noise: Tensor, sign: int) -> None:
        super().__init__()
        self.noise, self.sign = noise, sign

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        self.input = x
        return self.sign * self.noise


@pytest.mark.parametrize(
    ("scaling", "sign", "power"), [(VPScaling(), 1, 1), (VEScaling(), -1, None), (IDDPMScaling(), 1, 1)]
)
def test_a_perfect_network_denoises(scaling: Scaling, sign: int, power: int | None, generator: torch.Generator):
    x, noise = torch.randn(2, 3, 3, 8, 8, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.02, 1.0, 90.0], dtype=torch.float64)
    x_t = x + sigma[:, None, None, None] * noise
    oracle = Oracle(noise, sign)
    torch.testing.assert_close(Preconditioned(oracle, scaling)(x_t, sigma), x, rtol=1e-9, atol=1e-9)
    scale = (1 + sigma**2).sqrt() if power else torch.ones(3)
    torch.testing.assert_close(oracle.input, x_t / scale[:, None, None, None])
    # At noise level 0 the image is its own denoised version, whatever the network says.
    assert torch.equal(Preconditioned(oracle, scaling)(x, torch.zeros(3, dtype=torch.float64)), x)


@given(st.floats(1e-5, 1.0), st.floats(1, 30), st.floats(0.05, 1), st.sampled_from([1000, 400]))
def test_vp_tells_the_time_at_which_the_level_is_reached(t: float, beta_d: float, beta_min: float, M: int):
    scaling = VPScaling(beta_d, beta_min, M)
    sigma = scaling.sigma(t)
    assert sigma == pytest.approx(math.sqrt(math.exp(beta_d * t**2 / 2 + beta_min * t) - 1), rel=1e-6)
    c_noise = float(scaling.c_noise(torch.tensor([sigma], dtype=torch.float64)))
    assert c_noise == pytest.approx((M - 1) * t, rel=1e-9)


def test_vp_keeps_its_digits_in_fp32_at_low_levels():
    sigma = torch.tensor([0.0, 1e-3, 2e-3, 0.1, 152.0])
    exact = VPScaling().c_noise(sigma.double())
    torch.testing.assert_close(VPScaling().c_noise(sigma).double(), exact, rtol=1e-5, atol=0)
    assert exact[0] == 0


def test_ve_tells_the_logarithm_of_half_the_level():
    sigma = torch.tensor([0.02, 2.0, 100.0], dtype=torch.float64)
    torch.testing.assert_close(VEScaling().c_noise(sigma), (sigma / 2).log())
    assert VEScaling().c_noise(torch.zeros(1)).isfinite()


def levels_by_definition(C_1: float, C_2: float, M: int) -> list[float]:
    def alpha_bar(j: int) -> float:
        return math.sin(math.pi / 2 * j / (M * (C_2 + 1))) ** 2

    u = [0.0] * (M + 1)
    for j in range(M, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(alpha_bar(j - 1) / alpha_bar(j), C_1) - 1)
    return u


@pytest.mark.parametrize("constants", [(0.001, 0.008, 1000), (0.01, 0.02, 50)])
def test_iddpm_levels(constants: tuple[float, float, int]):
    levels = IDDPMScaling(*constants).levels()
    exact = torch.tensor(levels_by_definition(*constants))
    assert levels.dtype == torch.float32 and levels[-1] == 0
    torch.testing.assert_close(levels, exact, rtol=5e-3, atol=0)  # fp32 as in the published code
    torch.testing.assert_close(levels[: len(levels) // 2], exact[: len(levels) // 2], rtol=1e-4, atol=0)


def test_iddpm_tells_the_number_of_the_nearest_level():
    scaling = IDDPMScaling()
    u = scaling.levels()
    numbers = 999 - torch.arange(1001.0)
    assert torch.equal(scaling.c_noise(u), numbers)
    # 49 % of the way to the next level is still this one, 51 % is the next.
    assert torch.equal(scaling.c_noise(torch.lerp(u[:-1], u[1:], 0.49)), numbers[:-1])
    assert torch.equal(scaling.c_noise(torch.lerp(u[:-1], u[1:], 0.51)), numbers[1:])
    assert scaling.c_noise(torch.tensor([0.0, 1e9])).tolist() == [-1, 999]


def test_model_info_chooses_the_scaling():
    def of(**fields) -> Scaling:
        return scaling_of(ModelInfo(kind="diffusion", **fields))

    assert of(preconditioning="vp", beta_d=10.0, beta_min=0.2, M=500) == VPScaling(10.0, 0.2, 500)
    assert of(preconditioning="ve") == VEScaling()
    assert of(preconditioning="iddpm", C_1=0.01, C_2=0.02, M=50) == IDDPMScaling(0.01, 0.02, 50)
    for scaling in (VPScaling(), VEScaling(), IDDPMScaling()):
        assert isinstance(scaling, Scaling)


@pytest.mark.parametrize(
    ("field", "value"),
    [("M", 1), ("M", 10**9), ("beta_d", 0.0), ("beta_min", float("nan")), ("C_1", 0.0), ("C_1", 2.0), ("C_2", -0.1)],
)
def test_constants_out_of_range(field: str, value: float):
    with pytest.raises(UserError, match=field):
        ModelInfo(kind="diffusion", **{field: value})
