import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unistep.core.distance import l2
from unistep.core.parameterization import EDMScaling, Preconditioned, expand
from unistep.core.weighting import WEIGHTINGS, reciprocal_gap


@given(st.floats(1e-3, 1e3), st.floats(0.1, 2))
def test_values(sigma, sigma_data):
    snr = sigma**-2
    expected = {
        "uniform": 1,
        "snr": snr,
        "snr+1": snr + 1,
        "karras": snr + sigma_data**-2,
        "truncated-snr": max(snr, 1),
    }
    assert set(expected) == set(WEIGHTINGS)
    for name, value in expected.items():
        weight = WEIGHTINGS[name](torch.tensor([sigma], dtype=torch.float64), sigma_data)
        assert float(weight) == pytest.approx(value)


@given(st.floats(1e-3, 1e3), st.floats(0.1, 2))
def test_karras_undoes_c_out(sigma, sigma_data):
    s = torch.tensor([sigma], dtype=torch.float64)
    assert float(WEIGHTINGS["karras"](s, sigma_data) * EDMScaling(sigma_data).c_out(s) ** 2) == pytest.approx(1)


def test_reciprocal_gap():
    t, r = torch.tensor([2.0, 0.5]), torch.tensor([1.5, 0.0])
    assert reciprocal_gap(t, r).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("name", ["uniform", "karras", "snr+1"])
def test_golden_denoising_loss(golden, toy, name):
    values = golden.tensors("losses.npz")
    x, sigma = values["x0"], values[f"edm_sigma_{name}"]
    denoised = Preconditioned(toy("online"), EDMScaling())(x + expand(sigma, 4) * values["noise"], sigma)
    loss = l2(denoised, x) * WEIGHTINGS[name](sigma, 0.5)
    torch.testing.assert_close(loss, values[f"edm_loss_{name}"], rtol=1e-5, atol=0)
