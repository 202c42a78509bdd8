"""Where images of any size go in the model's, and nothing is stretched."""

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.errors import UserError
from unistep.images.frame import cut_margin, frame
from unistep.images.read import read_picture

GREY, COLOUR = (1, 16, 16), (3, 16, 16)


def ramp(width, height):
    """Pixel (x, y) is (x, y, 0)."""
    y, x = np.indices((height, width))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def test_crop_takes_the_middle():
    where = frame((48, 32), (16, 16), "crop")
    assert where.box == (8, 0, 40, 32)
    assert where.inside == (0, 0, 16, 16)
    assert where.describe() == "its central 32x32 is taken, reduced to 16x16"


def test_nothing_is_said_of_an_image_that_fits():
    assert [frame((16, 16), (16, 16), fit).describe() for fit in ("crop", "resize", "pad", "tiles")] == [""] * 4


def test_resize_refuses_to_stretch():
    assert frame((320, 320), (16, 16), "resize").box == (0, 0, 320, 320)
    with pytest.raises(UserError, match="48x32 and would be stretched to 16x16"):
        frame((48, 32), (16, 16), "resize")
    with pytest.raises(UserError, match="stretched"):
        frame((17, 16), (16, 16), "resize")


def test_pad_keeps_everything_and_its_margin_is_cut_off():
    picture = read_picture(ramp(48, 24), COLOUR, "pad")
    assert picture.frame.inside == (0, 4, 16, 12)
    assert torch.equal(picture.pixels[:, 0], picture.pixels[:, 4])  # the border goes on
    assert cut_margin(picture.pixels[None], picture.frame.inside).shape == (1, 3, 8, 16)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2), (16, 15), (1001, 999)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_any_size_fits_without_stretching(size, fit):
    """One scale for both axes, as nearly as whole pixels allow."""
    where = frame(size, (16, 16), fit)
    taken = where.box[2] - where.box[0], where.box[3] - where.box[1]
    longer = taken.index(max(taken))
    scale = where.inside_size[longer] / taken[longer]
    for inside, part in zip(where.inside_size, taken, strict=True):
        assert abs(inside - max(1, scale * part)) <= max(1, scale) / 2
    assert read_picture(Image.new("L", size), GREY, fit).pixels.shape == GREY


def test_tiles_keep_the_size_and_enlarge_what_is_too_small():
    assert frame((50, 31), (16, 16), "tiles").target == (50, 31)
    assert frame((8, 10), (16, 16), "tiles").target == (16, 20)
    with pytest.raises(UserError, match="of tiles"):
        frame((1, 5_000_000), (16, 16), "tiles")
