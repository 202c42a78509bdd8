import io

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.core.pixels import to_float
from unistep.data.bundled import BUNDLED
from unistep.editing.jpeg_level import jpeg_level
from unistep.errors import UserError


def jpeg(pixels: np.ndarray, quality: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image [C, H, W] after JPEG, and luma's table as Pillow reads it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        table = torch.tensor(image.quantization[0]).view(8, 8)
        read = torch.from_numpy(np.array(image))
    return to_float(read[None] if read.ndim == 2 else read.movedim(-1, 0)), table


def error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).flatten(1).square().mean(1).sqrt()


@pytest.fixture(scope="module")
def digits():
    with np.load(BUNDLED["mnist"].path) as arrays:
        return arrays["test_images"][:40].reshape(-1, 28, 28)


@pytest.mark.parametrize(("quality", "high"), [(5, 1.2), (10, 1.2), (20, 1.2), (40, 1.2), (75, 1.3)])
def test_error_of_digits(digits, quality, high):
    images, tables = zip(*(jpeg(pixels, quality) for pixels in digits), strict=True)
    x = torch.stack(images)
    ratio = jpeg_level(x, tables[0]) / error(x, to_float(torch.from_numpy(digits))[:, None])
    assert 0.95 < float(ratio.mean()) < high
    assert float(ratio.std()) < 0.15


@pytest.mark.parametrize("quality", [10, 40])
@pytest.mark.parametrize("shift", [(), (20.0, -5.0, -15.0)])
def test_error_of_what_fades_towards_high_frequencies(quality, shift, generator):
    frequency = torch.fft.fftfreq(64)[:, None].hypot(torch.fft.rfftfreq(64)).clamp_min(1 / 64)
    grey = torch.fft.irfft2(torch.fft.rfft2(torch.randn(8, 1, 64, 64, generator=generator)) / frequency**1.2)
    grey = 127.5 + 45 * (grey - grey.mean((2, 3), keepdim=True)) / grey.std((2, 3), keepdim=True)
    colours = grey + torch.tensor(shift).view(3, 1, 1) if shift else grey
    pixels = colours.round().clamp(0, 255).to(torch.uint8)
    images, tables = zip(*(jpeg(p.movedim(0, -1).squeeze(-1).numpy(), quality) for p in pixels), strict=True)
    ratio = jpeg_level(torch.stack(images), tables[0]) / error(torch.stack(images), to_float(pixels))
    assert 0.7 < float(ratio.mean()) < 0.9 and float(ratio.std()) < 0.1


def test_neither_the_batch_nor_grey_as_colour_changes_it(digits):
    wide = np.tile(digits[0], (2, 2))
    x, table = jpeg(np.ascontiguousarray(np.stack([wide] * 3, -1)), 20)
    x = torch.stack([x, x.flip(-1)])
    both = jpeg_level(x, table)
    torch.testing.assert_close(jpeg_level(x[:1], table)[0], both[0])
    # Three equal channels are the grey image.
    torch.testing.assert_close(jpeg_level(x[:, :1], table), both, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("quality", [10, 50])
def test_what_jpeg_wrote_is_found_where_its_blocks_lie(digits, quality):
    # Only rounding to pixels is left on JPEG's own grid, moved to where the other one is looked for.
    mild = (90 + np.tile(digits[3], (2, 2)) // 4).astype(np.uint8)
    x, table = jpeg(mild, quality)
    on_grid = torch.nn.functional.pad(x[None], (4, 0, 4, 0))
    assert float(jpeg_level(on_grid, table)) < 0.45 / 127.5 < 3 / 127.5 < float(jpeg_level(x[None], table))


def test_table_of_ones_is_rounding(digits):
    x = to_float(torch.from_numpy(digits))[:, None]
    assert jpeg_level(x, torch.ones(8, 8, dtype=torch.long)).max() < 0.3 / 127.5


def test_refusals():
    ones = torch.ones(8, 8, dtype=torch.long)
    assert jpeg_level(torch.zeros(1, 1, 12, 12), ones).shape == (1,)
    with pytest.raises(UserError, match="11x20 pixels are too small"):
        jpeg_level(torch.zeros(1, 1, 11, 20), ones)
    with pytest.raises(UserError, match="from 1 up"):
        jpeg_level(torch.zeros(1, 1, 16, 16), 0 * ones)
