"""Masks of any size say which pixels are known."""

import numpy as np
import pytest
from PIL import Image

from unistep.errors import UserError
from unistep.images.frame import frame
from unistep.images.mask import read_mask


def mask(width, height, painted):
    image = np.zeros((height, width), np.uint8)
    left, top, right, bottom = painted
    image[top:bottom, left:right] = 255
    return Image.fromarray(image)


def test_white_is_painted():
    known = read_mask(mask(16, 16, (0, 0, 16, 8)), frame((16, 16), (16, 16), "crop"))
    assert not known[:8].any() and known[8:].all()


def test_a_mask_of_another_size_is_fitted_as_the_image():
    """The left half of a wide image, of which the middle third is taken, in a mask half as large."""
    where = frame((96, 32), (16, 16), "crop")
    known = read_mask(mask(48, 16, (0, 0, 24, 16)), where)
    assert not known[:, :8].any() and known[:, 8:].all()


def test_a_mask_of_the_models_size():
    known = read_mask(mask(16, 16, (0, 0, 4, 16)), frame((96, 32), (16, 16), "crop"))
    assert not known[:, :4].any() and known[:, 4:].all()


def test_the_margin_of_pad_is_unknown():
    known = read_mask(mask(32, 16, (0, 0, 16, 16)), frame((32, 16), (16, 16), "pad"))
    assert not known[:4].any() and not known[12:].any() and known[4:12, 8:].all() and not known[:, :8].any()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (mask(50, 20, (0, 0, 9, 9)), "50x20 and fits neither the image's 16x16 nor the model's 16x16"),
        (mask(16, 16, (0, 0, 0, 0)), "nothing to paint at 16x16"),
        (mask(16, 16, (0, 0, 16, 16)), "marks everything"),
        (mask(1600, 1600, (801, 801, 803, 803)), "nothing to paint at 16x16"),
    ],
)
def test_masks_that_do_not_do(image, said):
    with pytest.raises(UserError, match=said):
        read_mask(image, frame((16, 16), (16, 16), "crop"))


def test_a_transparent_mask_paints_where_it_is_transparent():
    image = np.zeros((16, 16, 4), np.uint8)
    image[:, 8:, 3] = 255
    known = read_mask(Image.fromarray(image), frame((16, 16), (16, 16), "crop"))
    assert not known[:, :8].any() and known[:, 8:].all()
