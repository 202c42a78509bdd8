import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import nn

from unistep.core.denoiser import Denoiser
from unistep.core.noise import karras_sigmas
from unistep.core.parameterization import ConsistencyScaling, EDMScaling, Preconditioned, Scaling, expand


class Huge(nn.Module):
    """An untrained network at its worst."""

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        return 1e6 * x.sin() + c_noise[:, None, None, None]


@given(st.floats(1e-5, 1.0), st.floats(0.05, 2.0), st.sampled_from(["adm", "edm"]), st.integers(0, 2**31))
def test_boundary_condition_is_exact(sigma_min, sigma_data, embedding, seed):
    scaling = ConsistencyScaling(sigma_min, sigma_data, embedding)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 50
    sigma = torch.full((2,), sigma_min)
    assert torch.equal(Preconditioned(Huge(), scaling)(x, sigma), x)


def test_boundary_condition_holds_at_the_end_of_the_grid(generator):
    x = torch.randn(3, 3, 4, 4, generator=generator)
    sigma = karras_sigmas(1281)[-1].expand(3)
    assert torch.equal(Preconditioned(Huge(), ConsistencyScaling())(x, sigma), x)


def test_edm_boundary_condition_is_at_0_and_finite(generator):
    x = torch.randn(2, 3, 4, 4, generator=generator)
    for embedding in ("adm", "edm"):
        assert torch.equal(Preconditioned(Huge(), EDMScaling(noise_embedding=embedding))(x, torch.zeros(2)), x)


def test_consistency_with_sigma_min_0_is_edm():
    sigma = karras_sigmas(20)
    edm, consistency = EDMScaling(), ConsistencyScaling(sigma_min=0.0)
    for name in ("c_skip", "c_out", "c_in", "c_noise"):
        assert torch.equal(getattr(edm, name)(sigma), getattr(consistency, name)(sigma))


def test_c_out_has_the_unshifted_sigma_under_the_root():
    sigma = torch.tensor([1.5], dtype=torch.float64)
    c_out = ConsistencyScaling(sigma_min=0.5, sigma_data=0.5).c_out(sigma)
    assert float(c_out) == pytest.approx((1.5 - 0.5) * 0.5 / (1.5**2 + 0.25) ** 0.5, rel=1e-12)


@given(st.floats(1e-3, 100), st.floats(0.1, 2))
def test_edm_scalings_normalise_input_and_target(sigma, sigma_data):
    s, scaling = torch.tensor([sigma], dtype=torch.float64), EDMScaling(sigma_data)
    c_skip, c_out, c_in = (float(c(s)) for c in (scaling.c_skip, scaling.c_out, scaling.c_in))
    assert c_in**2 * (sigma_data**2 + sigma**2) == pytest.approx(1)
    # The training target of the network, (x - c_skip x_t)/c_out, has unit variance.
    assert (((1 - c_skip) * sigma_data) ** 2 + (c_skip * sigma) ** 2) / c_out**2 == pytest.approx(1)


def test_noise_embeddings():
    sigma = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    for scaling in (EDMScaling, ConsistencyScaling):
        torch.testing.assert_close(scaling(noise_embedding="adm").c_noise(sigma), 250 * sigma.log())
        torch.testing.assert_close(scaling(noise_embedding="edm").c_noise(sigma), sigma.log() / 4)


def test_scalings_and_preconditioned_satisfy_their_protocols(toy):
    assert isinstance(EDMScaling(), Scaling) and isinstance(ConsistencyScaling(), Scaling)
    assert isinstance(Preconditioned(toy("online"), EDMScaling()), Denoiser)


@pytest.mark.parametrize("name", ["openai_unet_class_scale_shift", "openai_unet_uncond_additive"])
def test_golden_scalings(golden, name):
    # One network gave both golden outputs: its own output, solved for from the EDM denoiser, must give the other.
    values = {key: value.double() for key, value in golden.tensors(f"{name}_values.npz").items()}
    x_t, sigma, edm = values["x_t"], values["sigma"], EDMScaling()
    torch.testing.assert_close(edm.c_noise(sigma), values["t"], rtol=1e-6, atol=1e-5)
    output = (values["edm_denoised"] - expand(edm.c_skip(sigma), 4) * x_t) / expand(edm.c_out(sigma), 4)

    class Network(nn.Module):
        def forward(self, x, c_noise, class_labels=None, *, generator=None):
            return output

    for scaling, expected in ((edm, "edm_denoised"), (ConsistencyScaling(), "consistency_out")):
        out = Preconditioned(Network(), scaling)(x_t, sigma)
        torch.testing.assert_close(out, values[expected], rtol=1e-5, atol=1e-6)


def test_everything_reaches_the_network(generator):
    seen = {}

    class Spy(nn.Module):
        def forward(self, x, c_noise, class_labels=None, *, generator=None):
            seen.update(labels=class_labels, generator=generator)
            return x

    labels = torch.tensor([3, 4])
    denoiser = Preconditioned(Spy(), EDMScaling())
    denoiser(torch.zeros(2, 3, 4, 4), torch.ones(2), labels, generator=generator)
    assert seen == {"labels": labels, "generator": generator}
    denoiser(torch.zeros(2, 3, 4, 4), torch.ones(2))
    assert seen == {"labels": None, "generator": None}


def test_a_half_precision_network_is_combined_in_full_precision(generator):
    class Half(nn.Module):
        def forward(self, x, c_noise, class_labels=None, *, generator=None):
            return torch.ones_like(x, dtype=torch.bfloat16)

    x, sigma = torch.randn(2, 3, 4, 4, generator=generator), torch.tensor([0.01, 3.0])
    scaling = EDMScaling()
    out = Preconditioned(Half(), scaling)(x, sigma)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expand(scaling.c_skip(sigma), 4) * x + expand(scaling.c_out(sigma), 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_output_has_the_dtype_of_the_input(dtype):
    class Single(nn.Module):
        def forward(self, x, c_noise, class_labels=None, *, generator=None):
            return torch.ones_like(x, dtype=torch.float32)

    out = Preconditioned(Single(), ConsistencyScaling())(
        torch.zeros(2, 3, 4, 4, dtype=dtype), torch.tensor([0.01, 3.0])
    )
    assert out.dtype == dtype


def test_each_image_has_its_own_noise_level(toy, generator):
    denoiser = Preconditioned(toy("online"), ConsistencyScaling())
    x, sigma = torch.randn(3, 3, 4, 4, generator=generator), torch.tensor([0.01, 1.0, 80.0])
    together = denoiser(x, sigma)
    for i in range(3):
        torch.testing.assert_close(denoiser(x[i : i + 1], sigma[i : i + 1]), together[i : i + 1])


def test_expand():
    assert expand(torch.ones(5), 4).shape == (5, 1, 1, 1)
    assert expand(torch.ones(5), 1).shape == (5,)


def test_shapes_are_checked_while_testing(toy):
    # That this raises shows that the import hook of conftest.py is at work.
    with pytest.raises(TypeCheckError):
        Preconditioned(toy("online"), EDMScaling())(torch.zeros(2, 3, 4, 4), torch.ones(3))
