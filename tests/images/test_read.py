"""Images as people have them become what the model takes, and nothing is stretched."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.errors import UserError
from unistep.images.read import cut_margin, frame, list_images, read_mask, read_picture

GREY, COLOUR = (1, 16, 16), (3, 16, 16)


def ramp(width, height):
    """Pixel (x, y) is (x, y, 0)."""
    y, x = np.indices((height, width))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------- frames


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


# ---------------------------------------------------------------------------------------------------- modes


def test_pixels_are_where_they_were():
    picture = read_picture(ramp(16, 16), COLOUR)
    assert picture.pixels[:, 3, 5].tolist() == [5, 3, 0]
    assert picture.known is None and picture.note == ""


def test_crop_is_not_shifted():
    """The middle of 20 x 16 begins at x = 2."""
    assert read_picture(ramp(20, 16), COLOUR).pixels[:, 3, 5].tolist() == [7, 3, 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I"])
@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_every_mode(mode, shape):
    image = Image.new("RGB", (16, 16), "white")
    image = Image.new(mode, (16, 16), 65535) if mode.startswith("I") else image.convert(mode)
    pixels = read_picture(image, shape).pixels
    assert pixels.shape == shape and pixels.dtype == torch.uint8
    assert int(pixels.min()) >= 250


def test_colour_that_a_grey_model_leaves_out_is_said():
    assert "colour is left out" in read_picture(ramp(16, 16), GREY).note
    assert read_picture(Image.new("RGB", (16, 16), (9, 9, 9)), GREY).note == ""


def test_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    ramp(16, 16).save(tmp_path / "a.png", exif=exif)
    assert read_picture(tmp_path / "a.png", COLOUR).pixels[:, 3, 5].tolist() == [3, 10, 0]


def test_an_image_in_memory_is_left_as_it_was():
    image = Image.new("RGBA", (16, 16), (1, 2, 3, 0))
    read_picture(image, COLOUR)
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (1, 2, 3, 0)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match="a.png: .*; give a PNG"):
        read_picture(tmp_path / "a.png", GREY)


def test_a_model_of_other_channels():
    with pytest.raises(UserError, match="4 channels"):
        read_picture(ramp(16, 16), (4, 16, 16))


# ---------------------------------------------------------------------------------------------------- transparency


def erased(side=16):
    """Red, with a green square that is erased."""
    image = np.zeros((side, side, 4), np.uint8)
    image[..., 0], image[..., 3] = 200, 255
    image[: side // 2, : side // 2] = (0, 255, 0, 0)
    return Image.fromarray(image)


def test_transparent_is_unknown_only_where_asked():
    assert read_picture(erased(), COLOUR).known is None
    known = read_picture(erased(), COLOUR, alpha=True).known
    assert known is not None and int((~known).sum()) == 64 and not known[:8, :8].any()
    assert read_picture(ramp(16, 16), COLOUR, alpha=True).known is None


def test_what_is_unknown_is_white():
    picture = read_picture(erased(160), COLOUR, alpha=True)
    assert picture.known is not None and set(picture.pixels[:, ~picture.known].flatten().tolist()) == {255}


def test_what_is_erased_does_not_leak_into_what_is_known():
    picture = read_picture(erased(160), COLOUR, alpha=True)
    assert picture.known is not None
    red, green, _ = picture.pixels[:, picture.known].int()
    assert green.max() == 0
    assert (red - 200).abs().max() <= 5  # Lanczos overshoots
    assert int((~picture.known).sum()) == 64


def test_transparent_becomes_white_otherwise():
    assert read_picture(erased(), COLOUR).pixels[:, 0, 0].tolist() == [255, 255, 255]


# ---------------------------------------------------------------------------------------------------- masks


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


# ---------------------------------------------------------------------------------------------------- lists


def test_files_and_folders_in_order(tmp_path):
    content = io.BytesIO()
    ramp(4, 4).save(content, "PNG")
    (tmp_path / "folder" / "below").mkdir(parents=True)
    for name in ("z.png", "folder/b.jpg", "folder/a.png", "folder/below/c.png", "folder/readme.txt"):
        (tmp_path / name).write_bytes(content.getvalue())
    found = list_images([tmp_path / "z.png", tmp_path / "folder"])
    assert [file.name for file in found] == ["z", "a", "b", "below/c"]
    assert all(Path(file.source).exists() for file in found)


def test_pillow_images_and_pixels_have_numbers():
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert [one.name for one in list_images([ramp(4, 4), pixels[0]])] == ["000000", "000001"]
    assert len(list_images(pixels)) == 2 and len(list_images(pixels[0])) == 1
    assert torch.equal(read_picture(pixels[0] + 7, (1, 4, 4)).pixels, pixels[0] + 7)
    with pytest.raises(UserError, match=r"`image` is float32 \[1, 4, 4\]; give uint8"):
        list_images(torch.zeros(1, 4, 4))


@pytest.mark.parametrize(
    ("name", "said"), [("zz.png", "did you mean .*z.png"), ("", "`image` is empty"), ("none", "no images are in it")]
)
def test_what_is_not_there(tmp_path, name, said):
    (tmp_path / "z.png").touch()
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=said):
        list_images([tmp_path / name if name else ""])
