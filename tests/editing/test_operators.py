"""What holds for every operator."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from unistep.core.pixels import to_float, to_uint8
from unistep.data.bundled import BUNDLED
from unistep.editing.operators import OPERATORS, Composition, Part
from unistep.editing.operators.deblurring import GaussianBlur
from unistep.editing.operators.operator import EXACT, ROUNDED, Operator, agree, agree_in_range, residual
from unistep.errors import UserError

EVERY = pytest.mark.parametrize("name", OPERATORS)
SIDES = st.one_of(st.integers(2, 24), st.integers(1, 3).map(lambda n: 8 * n))
SHAPES = st.tuples(st.sampled_from([1, 3]), SIDES, SIDES)
PATCHES = {
    "super-resolution x2": (2, 2), "super-resolution x4": (4, 4), "super-resolution x8": (8, 8),
    "super-resolution x1x2": (1, 2), "grey patches": (4, 4), "blurred patches": (2, 2),
    "patches of a wide blur": (2, 2),
}  # fmt: skip


def makes_sense(name: str, shape: tuple[int, int, int]) -> bool:
    fh, fw = PATCHES.get(name, (1, 1))
    return (
        shape[1] % fh == 0 and shape[2] % fw == 0 and (shape[0] == 3 or not ("grey" in name or name == "colorization"))
    )


def examples(shape: tuple[int, ...], seed: int = 0, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(dim=1)


def matrix(linear, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map of single images of `shape`."""
    size = torch.Size(shape).numel()
    return linear(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1).T


@EVERY
@settings(max_examples=12)
@given(shape=SHAPES, seed=st.integers(0, 100))
def test_what_is_known_and_the_rest(name, shape, seed):
    assume(makes_sense(name, shape))
    operator = OPERATORS[name](shape)
    x, z = examples(shape, seed), examples(shape, seed + 1)

    def project(images: Tensor) -> Tensor:
        return operator.A_pinv(operator.A(images))

    y = operator.A(x)
    torch.testing.assert_close(operator.A(operator.A_pinv(y)), y, rtol=0, atol=1e-9)
    # Two parts, each orthogonal to the other part of any image: the image is their sum.
    torch.testing.assert_close(project(project(x)), project(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(inner(project(x), z - project(z)), torch.zeros(2).double(), rtol=0, atol=1e-6)
    agreeing = agree(operator, z, operator.A_pinv(y))
    torch.testing.assert_close(operator.A(agreeing), y, rtol=0, atol=1e-9)
    torch.testing.assert_close(agreeing - project(agreeing), z - project(z), rtol=0, atol=1e-7)
    assert residual(operator, agreeing, y).max() < 1e-9


@EVERY
@settings(max_examples=10)
@given(shape=SHAPES)
def test_operators_are_linear_and_scaled_like_images(name, shape):
    assume(makes_sense(name, shape))
    operator = OPERATORS[name](shape)
    x, z = examples(shape), examples(shape, 1)
    both = operator.A(2 * x - 3 * z)
    torch.testing.assert_close(both, 2 * operator.A(x) - 3 * operator.A(z))
    torch.testing.assert_close(
        operator.A_pinv(both), 2 * operator.A_pinv(operator.A(x)) - 3 * operator.A_pinv(operator.A(z))
    )
    assert operator.A(x.sign()).abs().max() < 1.1


@pytest.mark.parametrize("name", [name for name in OPERATORS if name in PATCHES or "grey" in name or "color" in name])
@settings(max_examples=20)
@given(shape=SHAPES)
def test_what_makes_no_sense_is_refused_in_one_line(name, shape):
    assume(not makes_sense(name, shape))
    with pytest.raises(UserError) as error:
        OPERATORS[name](shape).A(examples(shape))
    assert "\n" not in str(error.value)


@EVERY
def test_the_pseudoinverse_is_that_of_the_matrix(name):
    shape = (3, 16, 8)
    operator = OPERATORS[name](shape)
    A = matrix(operator.A, shape)
    y_shape = operator.A(torch.zeros(1, *shape)).shape[1:]
    # In the band of a blur singular values are above 0.05, or the product of it and a mean's.
    torch.testing.assert_close(matrix(operator.A_pinv, y_shape), torch.linalg.pinv(A, rtol=1e-5), rtol=0, atol=1e-6)


@EVERY
def test_parts_are_what_they_say(name):
    shape = (3, 16, 8)
    operator = OPERATORS[name](shape)
    A = matrix(operator.A, shape)
    y_shape = operator.A(torch.zeros(1, *shape)).shape[1:]
    assert isinstance(operator, Operator) and isinstance(operator, Part) and operator.name
    torch.testing.assert_close(matrix(operator.A_T, y_shape), A.T)
    gram = A @ A.T
    assert operator.tight == torch.allclose(gram, gram[0, 0] * torch.eye(len(gram)).double(), atol=1e-12)
    if operator.stationary:
        y, x = operator.A(examples(shape)), examples(shape)
        step = shape[2] // y.shape[3]
        torch.testing.assert_close(operator.A(x.roll(step, 3)), y.roll(1, 3))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_type_of_numbers_is_kept(name, dtype):
    operator = OPERATORS[name]((3, 16, 16))
    x = examples((3, 16, 16)).clamp(-1, 1)
    y = operator.A(x.to(dtype))
    known = operator.A_pinv(y)
    assert y.dtype == known.dtype == agree_in_range(operator, x.to(dtype), y).dtype == dtype
    error = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(y.double(), operator.A(x), rtol=0, atol=error)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_the_device_is_kept():
    x = examples((3, 16, 16), dtype=torch.float32)
    for make in OPERATORS.values():
        operator = make((3, 16, 16))
        y, y_there = operator.A(x), operator.A(x.cuda())
        torch.testing.assert_close(y_there.cpu(), y, rtol=0, atol=1e-4)
        torch.testing.assert_close(operator.A_pinv(y_there).cpu(), operator.A_pinv(y), rtol=0, atol=1e-3)
        assert agree_in_range(operator, x.cuda(), y_there).device == y_there.device == x.cuda().device


@EVERY
def test_images_do_not_depend_on_their_batch(name):
    operator = OPERATORS[name]((3, 16, 16))
    x, start = pictures("smooth", 16), examples((3, 16, 16), batch=4, dtype=torch.float32)
    y = operator.A(x)
    together = agree_in_range(operator, start, y)
    for rows in ([2], [3, 0]):
        torch.testing.assert_close(operator.A(x[rows]), y[rows])
        torch.testing.assert_close(operator.A_pinv(y[rows]), operator.A_pinv(y)[rows], rtol=0, atol=1e-5)
        torch.testing.assert_close(agree_in_range(operator, start[rows], y[rows]), together[rows], rtol=0, atol=1e-4)


def pictures(kind: str, size: int = 32) -> Tensor:
    """Images of 8 bits; `smooth` ones are saturated in many places, as MNIST's background is."""
    generator = torch.Generator().manual_seed(0)
    if kind == "noise":
        return to_float(torch.randint(256, (4, 3, size, size), generator=generator).to(torch.uint8))
    coarse = 1.2 * torch.randn(4, 3, 6, 6, generator=generator)
    return to_float(to_uint8(torch.nn.functional.interpolate(coarse, size, mode="bicubic")))


def digits() -> Tensor:
    with np.load(BUNDLED["mnist"].path) as arrays:
        return to_float(torch.from_numpy(arrays["test_images"][:4]).view(4, 1, 28, 28))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind, shape in (("digits", (1, 28, 28)), ("smooth", (3, 32, 32)), ("noise", (3, 32, 32)))
        for name in OPERATORS
        if makes_sense(name, shape)
    ],
)
def test_results_agree_with_measurements_of_images_after_rounding(name, kind):
    images = digits() if kind == "digits" else pictures(kind)
    shape = tuple(images.shape[1:])
    operator = OPERATORS[name](shape)
    y = operator.A(images)
    for estimate in (examples(shape, batch=4, dtype=torch.float32), images.roll(1, 0)):
        x = agree_in_range(operator, estimate, y)
        assert x.abs().max() <= 1
        rounded = to_float(to_uint8(x))
        assert (operator.A(rounded) - y).abs().max() <= 2 / 255 * 0.6
        # On the scale of pixels too, where the numbers of a random basis are many times larger.
        assert operator.A_pinv(operator.A(rounded) - y).square().mean(dim=(1, 2, 3)).sqrt().max() < 2 / 255 * 0.5


def test_a_rounded_blur_is_undone_better_where_its_rounding_is_not_met():
    x, operator = digits(), GaussianBlur(2.0, threshold=0.02)  # which multiplies rounding by up to 50
    y = to_float(to_uint8(GaussianBlur(2.0, threshold=1e-9).A(x)))
    in_band, black = operator.A(operator.A_pinv(y)), torch.full_like(x, -1.0)
    exact, rounded = (agree_in_range(operator, black, y, close) for close in (EXACT, ROUNDED))
    assert (rounded - x).square().mean() < 0.95 * (exact - x).square().mean()
    assert (operator.A(to_float(to_uint8(rounded))) - in_band).abs().max() <= 2 / 255


def test_what_agrees_and_lies_in_range_stays():
    operator, x = OPERATORS["super-resolution x2"]((3, 16, 16)), pictures("noise", 16)
    torch.testing.assert_close(agree_in_range(operator, x, operator.A(x)), x)


class Counted:
    """An operator that counts its measurements."""

    def __init__(self, operator: Operator) -> None:
        self.name, self.A_pinv, self.measure, self.count = operator.name, operator.A_pinv, operator.A, 0

    def A(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.measure(x)


def test_a_measurement_of_no_image_in_range_is_met_as_far_as_it_goes():
    operator = Counted(OPERATORS["super-resolution x2"]((1, 4, 4)))
    y = torch.full((1, 1, 2, 2), 1.5)
    y[..., 0] = 0.5
    x = agree_in_range(operator, torch.zeros(1, 1, 4, 4), y)
    torch.testing.assert_close(operator.A(x), y.clamp(-1, 1), rtol=0, atol=2e-3)
    assert operator.count < 150


def test_a_measurement_of_no_image_is_met_where_the_operator_can():
    operator = Counted(OPERATORS["deblurring sigma 1, around the borders"]((1, 16, 16)))
    stripes = torch.ones(16, 16)
    stripes[:, ::2] = -1
    x = agree_in_range(operator, torch.zeros(1, 1, 16, 16), (0.5 + 0.1 * stripes)[None, None])
    torch.testing.assert_close(operator.A(x), torch.full((1, 1, 16, 16), 0.5), rtol=0, atol=2e-3)
    assert operator.count < 10


def test_the_examples_hold_every_kind_of_operator():
    kinds = {type(make((3, 16, 16))).__name__ for make in OPERATORS.values()}
    assert kinds == {
        "Inpainting", "Outpainting", "Colorization", "SuperResolution", "GaussianBlur", "CompressedSensing",
        Composition.__name__,
    }  # fmt: skip
