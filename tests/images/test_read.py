"""Images as people have them become what the model takes, and nothing is stretched."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.errors import UserError
from unistep.images.read import list_images, read_picture

GREY, COLOUR = (1, 16, 16), (3, 16, 16)


def ramp(width, height):
    """Pixel (x, y) is (x, y, 0)."""
    y, x = np.indices((height, width))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


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
