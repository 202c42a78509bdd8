"""Outputs of networks that are not finite are noticed wherever they come up, and the error has the remedy."""

import pytest
import torch
from torch import nn

from unistep.core.finite import FiniteWatch, NotFiniteError, Watched, check_finite, not_finite, precision_of
from unistep.core.parameterization import EDMScaling, IDDPMScaling, Preconditioned
from unistep.errors import UserError

NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


class Constant(nn.Module):
    """A denoiser of one weight, whose outputs are that weight."""

    def __init__(self, value: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=dtype))

    def forward(self, x_t, sigma, class_labels=None):
        return torch.zeros_like(x_t) + self.value.to(x_t.dtype)


def call(denoiser) -> None:
    denoiser(torch.zeros(2, 1, 2, 2), torch.ones(2), None)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_one_value_among_many(value):
    x = torch.zeros(3, 1, 8, 8)
    check_finite(x)
    x[2, 0, 7, 7] = value
    with pytest.raises(NotFiniteError):
        check_finite(x)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_an_output_that_others_follow_is_not_forgotten(value):
    """A clamp or a projection may hide it from what comes later."""
    watched = Watched(Constant(value))
    call(watched)
    watched.denoiser.value.data.fill_(0.5)
    call(watched)
    with pytest.raises(NotFiniteError):
        watched.check()
    watched.check()  # what was told is done with
    call(watched)
    watched.check()


def test_outputs_are_passed_on_as_they_are():
    watched, x = Watched(lambda x, sigma, labels=None: x), torch.randn(2, 1, 2, 2)
    assert watched(x, torch.ones(2), None) is x
    assert FiniteWatch().finite()


@pytest.mark.parametrize(
    ("dtype", "words", "without"),
    [
        (torch.float16, ["in fp16", '`dtype="fp32"`', '`dtype="bf16"`'], ["damaged"]),
        (torch.bfloat16, ["in bf16", "damaged", "diverged"], ["`dtype"]),
        (torch.float32, ["in fp32", "damaged", "diverged"], ["`dtype"]),
        (None, ['in fp16 give `dtype="fp32"`', "damaged"], []),
    ],
)
def test_the_remedy_is_that_of_the_precision(dtype, words, without):
    error = not_finite(dtype)
    assert isinstance(error, UserError) and "\n" not in str(error)
    assert all(word in str(error) for word in words) and not any(word in str(error) for word in without), str(error)


def test_the_precision_is_that_of_the_network_within():
    half = Constant(0.0, torch.float16)
    half.head = nn.Linear(4, 4)  # which stays in fp32
    assert precision_of(half) == precision_of(Watched(Watched(half))) == torch.float16
    assert precision_of(Constant(0.0)) == torch.float32
    assert precision_of(lambda x, sigma, labels=None: x) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert precision_of(Constant(0.0)) == torch.bfloat16


def test_a_watched_denoiser_rounds_levels_as_the_one_within():
    scaling = IDDPMScaling()
    watched = Watched(Preconditioned(nn.Identity(), scaling))
    levels = scaling.levels()
    assert watched.round_sigma(80.0) == levels[(levels - 80).abs().argmin()].item() != 80.0
    assert Watched(Preconditioned(nn.Identity(), EDMScaling())).round_sigma(80.0) == 80.0
    assert Watched(lambda x, sigma, labels=None: x).round_sigma(0.3) == 0.3
