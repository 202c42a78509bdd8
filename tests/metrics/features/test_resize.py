"""Resizes: bit for bit those that published figures were measured with."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.features.resize import RESIZES, check_resize, clean, filtered, legacy_tensorflow

SIZES = [(32, 32, 299), (64, 48, 299), (300, 301, 299), (512, 400, 299), (7, 5, 3), (1, 2, 8), (299, 299, 299)]


def images(height: int, width: int, channels: int = 3, count: int = 1) -> Tensor:
    noise = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (count, channels, height, width), generator=noise, dtype=torch.uint8)


def tensorflow_pixel(image: np.ndarray, y: int, x: int, size: int) -> np.float32:
    """One output pixel of TensorFlow 1's resize_bilinear of an image [H, W], every operation in float32."""
    f = np.float32
    found = []
    for index, before in ((y, image.shape[0]), (x, image.shape[1])):
        source = f(index) * (f(before) / f(size))
        lower = math.floor(source)
        found.append((lower, min(math.ceil(source), before - 1), f(source - f(lower))))
    (top, bottom, dy), (left, right, dx) = found
    upper_row = f(f(image[top, left]) + f(f(f(image[top, right]) - f(image[top, left])) * dx))
    lower_row = f(f(image[bottom, left]) + f(f(f(image[bottom, right]) - f(image[bottom, left])) * dx))
    return f(upper_row + f(f(lower_row - upper_row) * dy))


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_legacy_tensorflow_is_the_kernel_of_tensorflow(height: int, width: int, size: int):
    batch = images(height, width, count=2)
    found = legacy_tensorflow(batch, size)
    assert found.dtype == torch.float32 and found.shape == (2, 3, size, size)
    source = batch[1, 2].numpy()
    picks = range(size) if size < 20 else sorted({0, 1, 2, size // 3, size // 2, size - 2, size - 1})
    for y in picks:
        for x in range(size):
            assert found[1, 2, y, x].item() == tensorflow_pixel(source, y, x, size), (y, x)


def test_legacy_tensorflow_by_hand():
    """Twice the size: every second pixel is a source pixel, those between are means, the last is repeated."""
    found = legacy_tensorflow(torch.tensor([[[[0, 100], [200, 40]]]], dtype=torch.uint8), 4)
    expected = [[0, 50, 100, 100], [100, 85, 70, 70], [200, 120, 40, 40], [200, 120, 40, 40]]
    assert found[0, 0].tolist() == expected


@pytest.mark.parametrize(("height", "width", "size"), [*SIZES, (32, 32, 224)])
def test_the_filter_of_accelerators_is_pillows(height: int, width: int, size: int):
    batch = images(height, width, count=2)
    torch.testing.assert_close(filtered(batch, size, torch.float64), clean(batch, size), rtol=0, atol=1e-4)
    torch.testing.assert_close(filtered(batch, size, torch.float32), clean(batch, size), rtol=0, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_clean_on_a_gpu_is_pillows():
    batch = images(32, 32, count=8)
    torch.testing.assert_close(clean(batch.cuda(), 224).cpu(), clean(batch, 224), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_clean_is_pillow_on_floats(height: int, width: int, size: int):
    batch = images(height, width, count=2)
    found = clean(batch, size)
    assert found.dtype == torch.float32 and found.shape == (2, 3, size, size)
    for image, result in zip(batch, found, strict=True):
        for channel, resized in zip(image, result, strict=True):
            pillow = Image.fromarray(channel.numpy().astype(np.float32))
            assert pillow.mode == "F"
            assert np.array_equal(
                resized.numpy(), np.asarray(pillow.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255)
            )


def test_clean_is_clamped_but_not_rounded_and_filters():
    edge = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    found = clean(edge, 32)
    assert found.min() == 0 and found.max() == 255 and not torch.equal(found, found.round())
    # Stripes of one pixel are grey when every fourth pixel is left; the old resize keeps black or white.
    stripes = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    assert (clean(stripes, 16) - 127.5).abs().max() < 15
    assert set(legacy_tensorflow(stripes, 16).unique().tolist()) == {255.0}


def test_none_takes_only_its_size():
    batch = images(8, 8)
    assert torch.equal(RESIZES["none"](batch, 8), batch.float())
    with pytest.raises(UserError, match="8x8 pixels and the feature network takes 9x9"):
        RESIZES["none"](batch, 9)


@pytest.mark.parametrize("name", RESIZES)
def test_every_resize_leaves_the_right_size_alone_and_takes_views(name: str):
    batch = images(16, 16, count=3)
    assert torch.equal(RESIZES[check_resize(name)](batch, 16), batch.float())
    # Grey images repeated, and images laid out with their channels last, have strides of their own.
    grey = images(16, 16, channels=1).expand(-1, 3, -1, -1)
    views = batch.contiguous(memory_format=torch.channels_last)
    if name != "none":
        resize = RESIZES[check_resize(name)]
        assert torch.equal(resize(grey, 9), resize(grey.contiguous(), 9))
        assert torch.equal(resize(views, 9), resize(batch, 9))


def test_no_images_stay_no_images():
    for name in ("legacy-tensorflow", "clean"):
        assert RESIZES[name](images(16, 16)[:0], 8).shape == (0, 3, 8, 8)


def test_an_unknown_resize_is_refused():
    with pytest.raises(UserError, match="'bicubic' is unknown; choose legacy-tensorflow, clean, none"):
        check_resize("bicubic")
