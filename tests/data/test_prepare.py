"""Every kind of image becomes upright 8-bit grey or RGB."""

import io

import numpy as np
import pytest
from PIL import Image

from unistep.data.prepare import decode, fit, read_header, to_pixels
from unistep.data.reader import BadImage

GREY = np.array([[0, 100, 255], [7, 128, 200]], np.uint8)
COLOUR = np.array([[[10, 20, 30], [200, 0, 255]], [[0, 0, 0], [255, 128, 1]]], np.uint8)
ALPHA = np.array([[255, 0], [0, 255]], np.uint8)
ON_WHITE = np.where(ALPHA[..., None] == 255, COLOUR, 255).astype(np.uint8)


def with_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_grey(png):
    image = decode(png(GREY))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), GREY)


def test_colour(png):
    image = decode(png(COLOUR))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), COLOUR)


def test_black_and_white(png):
    bits = Image.fromarray(GREY > 50)
    assert bits.mode == "1"
    np.testing.assert_array_equal(np.asarray(decode(png(bits))), (GREY > 50) * np.uint8(255))


def test_transparent_pixels_become_white(png):
    rgba = np.concatenate([COLOUR, ALPHA[..., None]], -1)
    np.testing.assert_array_equal(np.asarray(decode(png(rgba))), ON_WHITE)


def test_half_transparent_pixels_are_half_white(png):
    rgba = np.array([[[0, 100, 255, 51]]], np.uint8)  # alpha 0.2
    np.testing.assert_array_equal(np.asarray(decode(png(rgba))), [[[204, 224, 255]]])


def test_grey_with_transparency_stays_grey(png):
    image = decode(png(Image.merge("LA", [Image.fromarray(COLOUR[..., 0]), Image.fromarray(ALPHA)])))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), ON_WHITE[..., 0])


def test_palette_of_colours(png):
    palette = Image.fromarray(COLOUR).quantize(4)
    assert read_header(png(palette)).mode == "P"
    np.testing.assert_array_equal(np.asarray(decode(png(palette))), COLOUR)


def test_palette_of_greys_is_grey(png):
    palette = Image.new("P", (3, 1))
    palette.putpalette([0, 0, 0, 90, 90, 90, 200, 200, 200])
    palette.putdata([2, 0, 1])
    content = png(palette)
    assert read_header(content).mode == "P"
    assert read_header(content).grey
    image = decode(content)
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), [[200, 0, 90]])


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette_with_a_transparent_entry(png, format):
    palette = Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 200])
    palette.putdata([0, 1, 2])
    content = png(palette, format, transparency=1)
    np.testing.assert_array_equal(np.asarray(decode(content)), [[[10, 20, 30], [255, 255, 255], [0, 0, 200]]])


def test_palette_with_alpha(png):
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 100, 255, 200, 0, 0])
    palette.putdata([0, 1])
    content = png(palette, transparency=bytes([51, 255]))
    np.testing.assert_array_equal(np.asarray(decode(content)), [[[204, 224, 255], [200, 0, 0]]])


@pytest.mark.parametrize(
    ("array", "key", "expected"),
    [
        (COLOUR, (200, 0, 255), [[[10, 20, 30], [255] * 3], [[0, 0, 0], [255, 128, 1]]]),
        (GREY, 100, [[0, 255, 255], [7, 128, 200]]),
    ],
)
def test_a_transparent_colour_becomes_white(png, array, key, expected):
    np.testing.assert_array_equal(np.asarray(decode(png(array, transparency=key))), expected)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_and_not_clipped(png, format):
    values = np.array([[0, 257 * 100, 65535], [257 * 3 + 120, 257 * 3 + 140, 257]], np.uint16)
    image = decode(png(values, format))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), [[0, 100, 255], [3, 4, 1]])


def test_cmyk(png):
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8)
    content = png(Image.frombytes("CMYK", (3, 1), inks.tobytes()), "TIFF")
    assert read_header(content).mode == "CMYK"
    np.testing.assert_array_equal(np.asarray(decode(content)), [[[255, 255, 255], [0, 255, 255], [0, 0, 0]]])


def test_cmyk_jpeg(png):
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image = decode(png(inks, "JPEG", quality=100))
    np.testing.assert_allclose(np.asarray(image).mean((0, 1)), [255, 0, 0], atol=3)


@pytest.mark.parametrize(("format", "options"), [("BMP", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TGA", {})])
def test_lossless_formats(png, format, options):
    np.testing.assert_array_equal(np.asarray(decode(png(COLOUR, format, **options))), COLOUR)


def test_jpeg(png):
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    np.testing.assert_allclose(np.asarray(decode(png(flat, "JPEG", quality=95))), flat, atol=2)


TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation(png, pixels, orientation, format):
    content = png(pixels[0], format, exif=with_exif(orientation))
    expected = TURNS[orientation](pixels[0])
    image = decode(content)
    np.testing.assert_array_equal(np.asarray(image), expected)
    header = read_header(content)
    assert (header.height, header.width) == expected.shape[:2]


def test_exif_orientation_of_jpeg(png):
    left_dark = np.zeros((16, 32), np.uint8)
    left_dark[:, 16:] = 255
    content = png(left_dark, "JPEG", exif=with_exif(6))  # to be turned clockwise: the left side comes to the top
    image = np.asarray(decode(content))
    assert image.shape == (32, 16)
    assert image[:16].mean() < 5 < 250 < image[16:].mean()
    assert (read_header(content).width, read_header(content).height) == (16, 32)


def test_damaged_exif_does_not_cost_the_image(png):
    np.testing.assert_array_equal(np.asarray(decode(png(COLOUR, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))), COLOUR)


def test_header_needs_only_the_beginning(png):
    content = png(np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8))
    assert read_header(content[:100]) == read_header(content)
    assert (read_header(content).width, read_header(content).height) == (32, 64)


@pytest.mark.parametrize(
    "spoil",
    [lambda c: b"", lambda c: b"no image at all", lambda c: c[:-40], lambda c: c[:60] + b"\xff" * 30 + c[90:]],
    ids=["empty", "text", "cut short", "scrambled"],
)
def test_damaged_files_are_bad_images(png, spoil):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    with pytest.raises(BadImage) as caught:
        decode(spoil(png(noise)))
    assert str(caught.value).isprintable()
    assert " at 0x" not in str(caught.value)


@pytest.mark.parametrize("array", [np.ones((2, 2), np.float32), np.full((2, 2), 70000, np.int32)])
def test_pixels_of_no_known_range_are_refused(png, array):
    with pytest.raises(BadImage, match="floating-point|16 bits"):
        decode(png(array, "TIFF"))


def test_programs_are_not_run():
    with pytest.raises(BadImage):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\nshowpage\n")


def test_decompression_bomb(png, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    content = png(np.zeros((20, 20), np.uint8))
    with pytest.raises(BadImage, match="more than 200 pixels"):
        decode(content)
    with pytest.raises(BadImage, match="more than 200 pixels"):
        read_header(content)


@pytest.mark.parametrize(("height", "width"), [(9, 20), (20, 9), (12, 7), (16, 16)])
@pytest.mark.parametrize("resolution", [4, 16])
def test_fit_is_edm_s_center_crop(height, width, resolution):
    # dataset_tool.py's center_crop, written again.
    array = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    side = min(height, width)
    crop = array[(height - side) // 2 : (height + side) // 2, (width - side) // 2 : (width + side) // 2]
    expected = Image.fromarray(crop).resize((resolution, resolution), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(np.asarray(fit(Image.fromarray(array), resolution)), np.asarray(expected))


def test_reduction_is_antialiased():
    checkers = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    reduced = np.asarray(fit(Image.fromarray(checkers.astype(np.uint8)), 8)).astype(int)
    assert np.abs(reduced - 127.5).max() < 6


def test_to_pixels_puts_channels_first():
    np.testing.assert_array_equal(to_pixels(Image.fromarray(COLOUR), 3), COLOUR.transpose(2, 0, 1))
    np.testing.assert_array_equal(to_pixels(Image.fromarray(GREY), 1), GREY[None])
    np.testing.assert_array_equal(to_pixels(Image.fromarray(GREY), 3), np.stack([GREY] * 3))
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(to_pixels(Image.fromarray(COLOUR), 1)[0], luma, atol=0.51)


def test_gif_takes_the_first_frame():
    frames = [Image.new("L", (4, 4), value) for value in (40, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert (np.asarray(decode(buffer.getvalue()).convert("L")) == 40).all()
