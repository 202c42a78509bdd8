"""Images are read whatever their profiles and texts hold, at their upright size, and without a warning."""

import io
import logging
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from unistep.data import open_dataset
from unistep.data.png import without_metadata
from unistep.data.prepare import MAX_PIXELS, decode, read_header
from unistep.data.quiet import _libtiff, quiet
from unistep.data.reader import BadImage
from unistep.images.read import read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(content, *chunks, late=False):
    """A PNG with further chunks before its pixels, or before its end."""
    place = content.index(b"IEND" if late else b"IDAT") - 4
    return content[:place] + b"".join(chunks) + content[place:]


def turned(orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"big\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"iCCP", b"broken\0\0" + b"no zlib"),
        chunk(b"iCCP", b"method\0\7" + zlib.compress(b"x")),
        chunk(b"iCCP", b""),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"iTXt", b"prompt\0\0\0\0\0" + b"x" * (3 << 20)),
        chunk(b"tEXt", b"prompt\0" + b"x" * (3 << 20)),
        chunk(b"tEXt", b""),
        chunk(b"pHYs", b"1"),
        chunk(b"gAMA", b""),
        chunk(b"eXIf", b"no exif"),
        chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0",  # of a wrong checksum
        *[chunk(b"tEXt", b"a\0" + bytes(1 << 19))] * 1,
    ],
)
def test_metadata_does_not_cost_the_pixels(png, extra, late):
    content = with_chunks(png(PIXELS), extra, late=late)
    np.testing.assert_array_equal(np.asarray(decode(content)), PIXELS)
    assert (read_header(content).width, read_header(content).height) == (8, 6)


def test_much_text_in_many_chunks(png):
    content = with_chunks(png(PIXELS), *[chunk(b"tEXt", b"a\0" + b"x" * (1 << 20))] * 80)
    np.testing.assert_array_equal(np.asarray(decode(content)), PIXELS)


@pytest.mark.parametrize("damage", [b"IDAT", b"IHDR", b"PLTE"])
def test_what_holds_the_pixels_must_be_whole(png, damage):
    content = bytearray(png(Image.fromarray(PIXELS).quantize(8)))
    content[content.index(damage) + 6] ^= 0xFF
    with pytest.raises(BadImage):
        decode(bytes(content))


def test_cut_files_are_refused(png):
    content = with_chunks(png(PIXELS), chunk(b"iCCP", b"big\0\0" + zlib.compress(bytes(3 << 20))))
    for end in range(20, content.index(b"IEND") - 40, 7):
        with pytest.raises(BadImage):
            decode(content[:end])


def test_what_needs_no_change_is_not_copied(png):
    content = png(PIXELS)
    assert without_metadata(content) is content


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "orientation",
    [
        chunk(b"eXIf", turned()),
        chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n    26\n" + turned().hex().encode() + b"\n")
        ),
        chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
    ],
)
def test_the_size_is_that_of_the_upright_image(tmp_path, png, orientation, late):
    content = with_chunks(png(PIXELS), orientation, late=late)
    image = decode(content)
    np.testing.assert_array_equal(np.asarray(image), np.rot90(PIXELS, -1))
    assert (read_header(content).width, read_header(content).height) == image.size == (6, 8)


@pytest.mark.parametrize("late", [False, True])
def test_the_sizes_of_a_dataset_are_those_of_upright_images(tmp_path, png, late):
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)  # more than the part that is read
    turned_noise = with_chunks(png(np.rot90(noise).copy()), chunk(b"eXIf", turned(6)), late=late)
    (tmp_path / "a.png").write_bytes(turned_noise)
    (tmp_path / "b.png").write_bytes(png(noise))
    assert len(turned_noise) > 64 << 10
    dataset = open_dataset(str(tmp_path))
    assert (dataset.images[0] == dataset.images[1]).all()


def test_a_turned_image_in_memory_keeps_its_transparency(png):
    rgba = np.concatenate([PIXELS, np.full((6, 8, 1), 255, np.uint8)], -1)
    rgba[0, :, 3] = 0
    image = Image.open(io.BytesIO(png(rgba, exif=b"Exif\0\0" + turned(6))))
    picture = read_picture(image, (3, 8, 6), alpha=True)
    assert picture.known is not None and not picture.known[:, -1].any() and picture.known[:, :-1].all()


# ---------------------------------------------------------------------------------------------------- warnings


def palette():
    image = Image.fromarray(PIXELS).quantize(8)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 100, 255]))
    return buffer.getvalue()


def test_pillow_does_not_warn(png, monkeypatch, caplog):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # warns above, refuses above twice as many
    contents = (png(PIXELS), palette(), png(PIXELS, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        for content in contents:
            decode(content)
            read_header(content)
        assert warnings.filters == before
    assert caplog.text == ""


@pytest.mark.skipif(not _libtiff(), reason="needs libtiff beside Pillow")
def test_libtiff_writes_nothing(png, capfd):
    content = bytearray(png(PIXELS, "TIFF", compression="tiff_lzw"))
    content[8:40] = b"\xff" * 32
    with pytest.raises(BadImage):
        decode(bytes(content))
    assert capfd.readouterr() == ("", "")
    with pytest.raises(OSError), Image.open(io.BytesIO(content)) as image:
        image.load()
    assert capfd.readouterr().err != ""  # outside it is as it was


def test_the_process_is_left_as_it_was():
    before, level = list(warnings.filters), logging.getLogger("PIL").level
    inside, left = threading.Event(), threading.Event()

    def first():
        with quiet():
            inside.set()
            left.wait(10)

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        thread = threading.Thread(target=first)
        thread.start()
        inside.wait(10)
        with quiet():
            exec(compile("import warnings; warnings.warn('quiet')", "a", "exec"), {"__name__": "PIL.Image"})
            warnings.warn("heard", stacklevel=1)
        exec(compile("import warnings; warnings.warn('quiet')", "a", "exec"), {"__name__": "PIL.Image"})
        left.set()
        thread.join()
        exec(compile("import warnings; warnings.warn('heard')", "a", "exec"), {"__name__": "PIL.Image"})
    assert [str(one.message) for one in heard] == ["heard", "heard"]
    assert list(warnings.filters) == before and logging.getLogger("PIL").level == level


# ---------------------------------------------------------------------------------------------------- large images


def blank(side, format, **options):
    buffer = io.BytesIO()
    Image.new("L", (side, side), 200).save(buffer, format, **options)
    return buffer.getvalue()


def test_one_limit_of_pixels(monkeypatch):
    monkeypatch.setattr("unistep.data.prepare.MAX_PIXELS", 100 * 100)
    for format in ("PNG", "JPEG", "TIFF", "WEBP", "BMP"):
        assert decode(blank(100, format)).size == (100, 100)
        with pytest.raises(BadImage, match="101x101 pixels, more than the 10,000"):
            decode(blank(101, format))
    assert MAX_PIXELS == 8192 * 8192


def test_a_large_jpeg_is_decoded_smaller_where_that_is_enough(monkeypatch):
    monkeypatch.setattr("unistep.data.prepare.MAX_PIXELS", 100 * 100)
    content = blank(400, "JPEG")
    assert decode(content, side=50).size == (100, 100)
    assert decode(content, side=100).size == (100, 100)
    with pytest.raises(BadImage):
        decode(content, side=101)
    assert (read_header(content).width, read_header(content).height) == (400, 400)


def test_ordinary_images_keep_their_bits(png):
    content = png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")
    np.testing.assert_array_equal(np.asarray(decode(content, side=8)), np.asarray(Image.open(io.BytesIO(content))))


def test_arrays_of_large_images_are_refused(tmp_path, monkeypatch, refusal):
    monkeypatch.setattr("unistep.data.npz.MAX_PIXELS", 99)
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((1, 10, 10), np.uint8))
    refusal(lambda: open_dataset(str(tmp_path / "a.npz")), "at most 99 pixels")
