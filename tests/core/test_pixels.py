"""uint8 <-> [-1, 1]."""

import pytest
import torch

from unistep.core.finite import NotFiniteError
from unistep.core.pixels import psnr, to_float, to_uint8

ALL = torch.arange(256, dtype=torch.uint8)


def test_ends_of_the_range():
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_values_are_evenly_spaced():
    torch.testing.assert_close(to_float(ALL).diff(), torch.full((255,), 2 / 255), rtol=0, atol=1e-6)


def test_every_pixel_survives_the_round_trip():
    assert torch.equal(to_uint8(to_float(ALL)), ALL)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_round_in_fp32(dtype):
    values = to_float(ALL).to(dtype)
    expected = torch.tensor([round((v / 2 + 0.5) * 255) for v in values.double().tolist()])
    assert (to_uint8(values).int() - expected).abs().max() <= (0 if dtype == torch.float64 else 1)
    assert to_uint8(values).dtype == torch.uint8


def test_rounds_to_the_nearest_instead_of_truncating():
    pixel = torch.arange(255, dtype=torch.float64)
    below, above = (((pixel + part) / 255 * 2 - 1).float() for part in (0.49, 0.51))
    assert torch.equal(to_uint8(below), ALL[:-1])
    assert torch.equal(to_uint8(above), ALL[1:])


def test_values_beyond_the_range_are_clamped():
    assert to_uint8(torch.tensor([-7.0, -1.001, 1.001, 1e30])).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_values_that_are_not_finite_are_no_pixels(value, dtype):
    images = torch.zeros(2, 1, 4, 4, dtype=dtype)
    images[1, 0, 3, 2] = value
    with pytest.raises(NotFiniteError, match="not finite"):
        to_uint8(images)


def test_psnr_of_known_errors():
    black = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    other = black.clone()
    other[1] += 1
    other[2] += 255
    assert psnr(black, other).tolist() == pytest.approx([78.13, 48.13, 0.0], abs=0.01)
