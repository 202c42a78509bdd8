"""Each operator against a definition of its own."""

import math

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
from PIL import Image

from unistep.core.pixels import to_float, to_uint8
from unistep.editing.operators import mask
from unistep.editing.operators.colorization import Colorization
from unistep.editing.operators.composition import Composition
from unistep.editing.operators.compressed_sensing import CompressedSensing
from unistep.editing.operators.deblurring import GaussianBlur
from unistep.editing.operators.mask import Inpainting
from unistep.editing.operators.super_resolution import SuperResolution
from unistep.errors import UserError


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_luma_is_that_of_pillow():
    pixels = torch.randint(256, (16, 16, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    grey = torch.from_numpy(np.array(Image.fromarray(pixels.numpy()).convert("L")))
    y = Colorization().A(to_float(pixels.permute(2, 0, 1)[None]))
    assert (y[0, 0] - to_float(grey)).abs().max() < 1.1 / 127.5


def test_a_grey_picture_is_its_own_luma():
    grey = noise(2, 1, 4, 4)
    torch.testing.assert_close(Colorization().A(grey.expand(-1, 3, -1, -1)), grey)


def test_luma_is_the_first_vector_of_an_orthogonal_basis():
    columns = torch.eye(3, dtype=torch.float64)
    columns[:, 0] = torch.tensor([0.2989, 0.5870, 0.1140])
    basis, _ = torch.linalg.qr(columns)
    x = noise(2, 3, 4, 4)
    coordinates = torch.einsum("bchw,cd->bdhw", x, basis)
    coordinates[:, 1:] = 0
    known = torch.einsum("bdhw,cd->bchw", coordinates, basis)
    torch.testing.assert_close(Colorization().A_pinv(Colorization().A(x)), known, rtol=0, atol=1e-7)


@pytest.mark.parametrize("factor", [2, 4, (1, 2), (4, 2)])
def test_patches_are_pooled(factor):
    x = noise(2, 3, 8, 16)
    torch.testing.assert_close(SuperResolution(factor).A(x), torch.nn.functional.avg_pool2d(x, factor))


@pytest.mark.parametrize("border", ["reflect", "wrap"])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 30.0])
def test_the_blur_is_a_gaussian(sigma, border):
    x = noise(1, 2, 12, 15)
    blurred = torch.from_numpy(scipy.ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode=border, truncate=9))
    torch.testing.assert_close(GaussianBlur(sigma, 1e-12, border).A(x), blurred, rtol=0, atol=1e-9)
    # With the threshold, all that is missing lies where the blur leaves less than it.
    missing = GaussianBlur(sigma, 0.1, border).A(x) - blurred
    if border == "wrap":
        assert (torch.fft.fft2(missing).abs() <= 0.1 * torch.fft.fft2(x).abs() + 1e-9).all()
    else:
        spectra = (torch.from_numpy(scipy.fft.dctn(a.numpy(), axes=(2, 3))).abs() for a in (missing, x))
        assert (next(spectra) <= 0.1 * next(spectra) + 1e-9).all()


def test_a_photograph_is_sharper_to_its_borders():
    """Blurred with what lies beyond them, which the operator does not know, and rounded."""
    scene = torch.nn.functional.interpolate(noise(2, 3, 16, 16).clamp(-1, 1), 96, mode="bicubic").clamp(-1, 1)
    blurred = torch.from_numpy(scipy.ndimage.gaussian_filter(scene.numpy(), (0, 0, 2, 2)))
    x, y = scene[:, :, 16:-16, 16:-16], to_float(to_uint8(blurred[:, :, 16:-16, 16:-16]))

    def error(guess: torch.Tensor) -> float:
        return float((guess.clamp(-1, 1) - x).square().mean())

    assert error(GaussianBlur(2.0).A_pinv(y)) < 0.5 * error(y)
    assert error(GaussianBlur(2.0, border="wrap").A_pinv(y)) > 3 * error(y)


@pytest.mark.parametrize("threshold", [0.5, 0.1, 0.02])
def test_noise_of_a_blurred_image_grows_by_the_threshold_at_most(threshold):
    operator, y = GaussianBlur(1.5, threshold), noise(4, 1, 32, 32)
    growth = operator.A_pinv(y).norm() / operator.A(operator.A_pinv(y)).norm()
    assert 1 < growth < 1 / threshold


def test_deblurring_restores_what_8_bits_leave():
    x = to_float(to_uint8(torch.nn.functional.interpolate(noise(4, 3, 8, 8).float(), 32, mode="bicubic")))
    blurred = scipy.ndimage.gaussian_filter(x.numpy(), (0, 0, 1, 1), mode="reflect", truncate=9)
    y = to_float(to_uint8(torch.from_numpy(blurred)))

    def decibels(guess: torch.Tensor) -> float:
        return float(10 * torch.log10(4 / (guess.clamp(-1, 1) - x).square().mean()))

    assert decibels(GaussianBlur(1.0).A_pinv(y)) > decibels(y) + 5
    # The default lies between a threshold that keeps the rounding's noise and one that drops the image.
    assert decibels(GaussianBlur(1.0).A_pinv(y)) > max(
        decibels(GaussianBlur(1.0, threshold).A_pinv(y)) for threshold in (1e-3, 0.2)
    )


def test_coefficients_are_those_of_a_cosine_transform_of_pixels_with_signs(generator):
    shape = (3, 6, 5)
    operator, x = CompressedSensing(shape, 1, generator), noise(2, *shape)
    assert set(operator.signs.unique().tolist()) == {-1.0, 1.0}
    coefficients = scipy.fft.dctn((x * operator.signs).numpy(), axes=(1, 2, 3), norm="ortho").reshape(2, -1)
    expected = torch.from_numpy(coefficients)[:, operator.kept] / math.sqrt(90)
    torch.testing.assert_close(operator.A(x), expected)
    torch.testing.assert_close(operator.A_pinv(operator.A(x)), x)


def test_the_basis_is_its_seed_and_the_share_is_kept():
    def make(seed: int, share: float = 0.3) -> CompressedSensing:
        return CompressedSensing((1, 8, 8), share, torch.Generator().manual_seed(seed))

    x = noise(2, 1, 8, 8)
    assert torch.equal(make(0).A(x), make(0).A(x)) and make(0).A(x).shape == (2, 19)
    assert not torch.allclose(make(0).A(x), make(1).A(x))
    assert make(0, 1e-6).A(x).shape == (2, 1)


def test_every_coefficient_hears_of_every_part_of_the_image(generator):
    """One pixel apart from 0 is seen by most coefficients, so that any few of them tell of it."""
    operator, x = CompressedSensing((1, 16, 16), 0.5, generator), torch.zeros(1, 1, 16, 16)
    x[0, 0, 3, 5] = 1
    y = operator.A(x) * 16
    assert (y.abs() > 0.1 / 16).float().mean() > 0.9


def test_large_images_need_no_matrix(generator):
    operator, x = CompressedSensing((3, 256, 256), 0.1, generator), torch.ones(1, 3, 256, 256)
    y = operator.A(x)
    torch.testing.assert_close(operator.A(operator.A_pinv(y)), y, rtol=0, atol=1e-6)


def test_some_pixels_of_a_blurred_image_are_met_nearly(generator):
    """A A^T is nearly singular, the iteration is cut short: the measurement is met to a part of a step of 8 bits."""
    operator = Composition(GaussianBlur(1.0), Inpainting(mask.random((16, 16), 0.5, generator)))
    y = operator.A(noise(2, 3, 16, 16).clamp(-1, 1))
    assert (operator.A(operator.A_pinv(y)) - y).abs().max() < 3e-3


def test_conjugate_gradients_find_the_pseudoinverse(generator):
    """Where the parts allow it: few pixels of a slight blur."""
    operator, x = Composition(GaussianBlur(0.5), Inpainting(mask.random((8, 8), 0.3, generator))), noise(2, 1, 8, 8)
    A = operator.A(torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)).T
    y = operator.A(x)
    torch.testing.assert_close(operator.A_pinv(y).flatten(1), y @ torch.linalg.pinv(A).T, rtol=0, atol=1e-7)
    # Every image stops by itself: a grey one at once.
    known = operator.A_pinv(torch.cat([y, 0 * y[:1]]))
    torch.testing.assert_close(known[:2], operator.A_pinv(y), rtol=0, atol=1e-9)
    assert (known[2] == 0).all()


def test_of_a_measurement_that_no_image_has_the_nearest_is_taken():
    operator = Composition(GaussianBlur(3.0), SuperResolution(2))
    y = noise(1, 1, 8, 8)
    A = operator.A(torch.eye(256, dtype=torch.float64).view(256, 1, 16, 16)).flatten(1).T
    nearest = (A @ torch.linalg.pinv(A, rtol=1e-5) @ y.flatten()).view_as(y)
    torch.testing.assert_close(operator.A(operator.A_pinv(y)), nearest, rtol=0, atol=1e-7)
    assert (nearest - y).abs().max() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Colorization().A(torch.zeros(1, 1, 4, 4)), "colorization needs images of 3 channels, not 1"),
        (lambda: SuperResolution(0), "a factor of 0 makes nothing larger"),
        (lambda: SuperResolution((2, -1)), "a factor of 2x-1"),
        (lambda: SuperResolution(3).A(torch.zeros(1, 1, 4, 6)), "x3 cannot part images of 4x6 pixels"),
        (lambda: GaussianBlur(0.0), "a blur of sigma 0 pixels"),
        (lambda: GaussianBlur(math.nan), "a blur of sigma nan pixels"),
        (lambda: GaussianBlur(math.inf), "a blur of sigma inf pixels"),
        (lambda: GaussianBlur(1.0, 1.0), "threshold 1 of deblurring must lie between 0 and 1"),
        (lambda: CompressedSensing((1, 4, 4), 0, torch.Generator()), r"share 0 .* must lie in \(0, 1\]"),
        (
            lambda: CompressedSensing((1, 4, 4), 0.5, torch.Generator()).A(torch.zeros(1, 3, 4, 4)),
            r"compressed sensing 50% was made for images of 1x4x4 .*, not 3x4x4",
        ),
        (
            lambda: Composition(Inpainting(mask.lower((4, 4))), SuperResolution(2)).A(torch.zeros(1, 1, 4, 4)),
            "inpainting measures no image that super-resolution x2 could take: put it last",
        ),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
