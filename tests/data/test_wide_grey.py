"""Grey images of 16 bits: the bits that a whole dataset uses count, and are said."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.data import open_dataset
from unistep.data.grey import GreyRange
from unistep.data.inspect import inspect_source
from unistep.data.prepare import decode
from unistep.images.read import list_images, read_picture


def ramp(top):
    return np.linspace(0, top, 64).round().astype(np.uint16).reshape(8, 8)


@pytest.mark.parametrize(
    ("highest", "bits"),
    [
        (1, 8),
        (255, 8),
        (256, 10),
        (1023, 10),
        (1024, 12),
        (4095, 12),
        (4096, 14),
        (16383, 14),
        (16384, 16),
        (65535, 16),
    ],
)
def test_bits(highest, bits):
    assert GreyRange(highest, False).bits == bits


def test_8_bits_spread_over_16():
    dark = np.arange(64).reshape(8, 8).astype(np.uint16) * 257
    assert GreyRange.of(Image.fromarray(dark)).bits == 16
    assert GreyRange.of(Image.fromarray(dark + 1)).bits == 14


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("top", [1023, 4095, 16383, 65535])
def test_the_range_is_used_and_said(tmp_path, png, caplog, format, top):
    (tmp_path / f"a.{format.lower()}").write_bytes(png(ramp(top), format))
    dataset = open_dataset(str(tmp_path))
    expected = np.linspace(0, 255, 64).reshape(8, 8)
    assert np.abs(dataset.images[0, 0].numpy() - expected).max() <= 1
    assert (f"hold values up to {top:,}" in caplog.text) == (top < 65535)
    assert inspect_source(str(tmp_path)).grey_bits == top.bit_length()
    assert "bits of it are used" in str(inspect_source(str(tmp_path)).rows())


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_every_order_of_bytes(tmp_path, png, dtype):
    (tmp_path / "a.tif").write_bytes(png(Image.fromarray(ramp(4095).astype(dtype)), "TIFF"))
    assert open_dataset(str(tmp_path)).images.max() == 255


def test_images_of_12_bits_in_a_tiff_of_12_bits():
    """Two values in three bytes, which Pillow unpacks and does not scale."""
    pixels = np.array([[0, 4095, 2048, 1024]], np.uint16)
    packed = b"".join(
        bytes([int(a) >> 4, (int(a) & 15) << 4 | int(b) >> 8, int(b) & 255]) for a, b in pixels.reshape(-1, 2)
    )
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert np.asarray(decode(content)).tolist() == [[0, 255, 128, 64]]


def test_a_dark_image_is_as_dark_as_beside_its_neighbours(tmp_path, png, caplog):
    (tmp_path / "a.png").write_bytes(png(ramp(3000)))
    (tmp_path / "b.png").write_bytes(png(ramp(65535)))
    images = open_dataset(str(tmp_path)).images
    assert images[0].max() == 12 and images[1].max() == 255
    assert "16 bits hold" not in caplog.text
    assert open_dataset(str(tmp_path), resolution=8, channels=1).images.equal(images)


@pytest.mark.parametrize("resolution", [None, 8])
def test_a_dataset_of_12_bits_has_one_range(tmp_path, png, resolution):
    for name, top in (("a", 500), ("b", 4095), ("c", 2000)):
        (tmp_path / f"{name}.png").write_bytes(png(ramp(top)))
    images = open_dataset(str(tmp_path), resolution=resolution, channels=1).images
    assert images.amax((1, 2, 3)).tolist() == [31, 255, 125]


def test_edits_share_one_range(tmp_path, png, caplog):
    for name, top in (("a", 500), ("b", 4095)):
        (tmp_path / f"{name}.png").write_bytes(png(ramp(top)))
    given = list_images([tmp_path / "a.png", tmp_path / "b.png", Image.fromarray(ramp(2000))])
    pixels = [read_picture(one.source, (1, 8, 8), grey_bits=one.grey_bits).pixels for one in given]
    assert [int(one.max()) for one in pixels] == [31, 255, 125]
    assert "a.png and 2 more: 16 bits with values up to 4,095, read as 12 bits" in caplog.text
    assert int(read_picture(tmp_path / "b.png", (1, 8, 8)).pixels.max()) == 255


def test_images_of_8_bits_have_no_range(tmp_path, png, caplog):
    (tmp_path / "a.png").write_bytes(png(np.arange(64, dtype=np.uint8).reshape(8, 8)))
    assert open_dataset(str(tmp_path)).images.max() == 63
    assert inspect_source(str(tmp_path)).grey_bits is None
    assert list_images(tmp_path / "a.png")[0].grey_bits is None
    assert caplog.text == ""


def test_the_range_is_that_of_the_cache_too(tmp_path, png, caplog):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(png(ramp(4095)))
    first, again = (
        open_dataset(str(tmp_path / "set"), memory_limit=0, cache_dir=tmp_path / "cache").images for _ in range(2)
    )
    assert torch.equal(first, again) and first.max() == 255
    assert caplog.text.count("read as 12 bits") == 2


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(values):
    """A PNG of 16 bits of values [H, W, C]: 2 are grey and opacity."""
    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("coloured", "opacity"), [(1, 4095), (1, 65535), (3, None), (3, 4095), (3, 65535)])
def test_colours_and_opacity_of_12_bits(tmp_path, caplog, coloured, opacity):
    values = np.stack([ramp(4095)] * coloured, -1)
    if opacity is not None:
        values = np.concatenate([values, np.full((8, 8, 1), opacity, np.uint16)], -1)
    (tmp_path / "a.png").write_bytes(png16(values))
    images = open_dataset(str(tmp_path)).images
    assert np.abs(images[0, 0].numpy() - np.linspace(0, 255, 64).reshape(8, 8)).max() <= 1
    assert "hold values up to 4,095, and are read as 12 bits" in caplog.text
    (given,) = list_images(tmp_path / "a.png")
    assert given.grey_bits == 12 and (read_picture(given.source, (3, 8, 8), grey_bits=12).pixels == images[0]).all()


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_are_as_they_were(channels):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, channels)).astype(np.uint16)
    dark = (values >> 10) * 257  # 8 bits, spread
    for one in (values, dark):
        one[..., -1] = 65535 if channels != 3 else one[..., -1]
        np.testing.assert_array_equal(np.asarray(decode(png16(one)))[..., 0].ravel()[:8], (one >> 8)[0, :, 0])


@pytest.mark.parametrize("mode", ["LA", "PA", "CMYK", "1", "P"])
def test_other_modes_are_as_they_were(png, mode):
    image = Image.new("L", (4, 4), 255).convert("P" if mode == "PA" else mode).convert(mode)
    assert np.asarray(decode(png(image, "TIFF" if mode in ("CMYK", "PA") else "PNG"))).min() == 255
