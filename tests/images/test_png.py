import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unistep.images.png import png_bytes


@given(st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 3), st.randoms())
def test_pillow_reads_what_was_written(channels, height, width, kind, random):
    pixels = torch.tensor([random.randrange(256) if kind else 7 * kind for _ in range(channels * height * width)])
    image = pixels.to(torch.uint8).view(channels, height, width)
    with Image.open(io.BytesIO(png_bytes(image))) as file:
        file.verify()  # checksums
    with Image.open(io.BytesIO(png_bytes(image))) as file:
        assert (file.format, file.mode, file.size) == ("PNG", {1: "L", 3: "RGB"}[channels], (width, height))
        read = np.asarray(file).reshape(height, width, channels)
    assert (read.transpose(2, 0, 1) == image.numpy()).all()


def test_views_are_written_as_they_look():
    image = torch.arange(96, dtype=torch.uint8).view(1, 8, 12).transpose(1, 2)
    assert png_bytes(image) == png_bytes(image.contiguous())


def test_other_numbers_of_channels_are_no_image():
    with pytest.raises(KeyError):
        png_bytes(torch.zeros(2, 4, 4, dtype=torch.uint8))
