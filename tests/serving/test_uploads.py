import asyncio
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.errors import UserError
from unistep.images.read import decoded
from unistep.serving.config import ServerConfig
from unistep.serving.pictures import check_results, decode_upload, encode, encode_now

RANDOM = np.random.default_rng(0)
CONFIG = ServerConfig(max_pixels=100_000, max_side=2000)


def file_of(image: Image.Image, kind: str, **given) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **given)
    return file.getvalue()


def noise(*shape: int, most: int = 256, kind: type = np.uint8) -> np.ndarray:
    return RANDOM.integers(0, most, shape).astype(kind)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of(Image.fromarray(noise(20, 30, 3)), "JPEG", exif=exif)


def frames() -> bytes:
    first, second = (Image.fromarray(noise(9, 9)) for _ in range(2))
    return file_of(first, "GIF", save_all=True, append_images=[second])


FILES = {
    "grey.png": file_of(Image.fromarray(noise(28, 28)), "PNG"),
    "wide.png": file_of(Image.fromarray(noise(28, 28, most=4096, kind=np.uint16)), "PNG"),
    "transparent.png": file_of(Image.fromarray(noise(28, 28, 4)), "PNG"),
    "palette.png": file_of(Image.fromarray(noise(28, 28, 3)).quantize(16), "PNG", transparency=3),
    "turned.jpg": turned(),
    "cmyk.jpg": file_of(Image.fromarray(noise(16, 16, 3)).convert("CMYK"), "JPEG"),
    "frames.gif": frames(),
    "page.tiff": file_of(Image.fromarray(noise(12, 15, 3)), "TIFF"),
    "photo.webp": file_of(Image.fromarray(noise(12, 15, 3)), "WEBP"),
    "old.bmp": file_of(Image.fromarray(noise(12, 15, 3)), "BMP"),
    "another.jpg": file_of(Image.fromarray(noise(12, 12)), "PNG"),
}


@pytest.mark.parametrize("name", FILES)
def test_an_upload_is_the_picture_that_its_file_is(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    upload = decode_upload(FILES[name], CONFIG)
    assert upload.mode in ("L", "RGB", "RGBA")
    expected, sent = decoded(path, name, alpha=True), decoded(upload, name, alpha=True)
    assert np.array_equal(np.asarray(sent.image), np.asarray(expected.image))
    assert (sent.transparent is None) == (expected.transparent is None)
    if expected.transparent is not None:
        assert np.array_equal(np.asarray(sent.transparent), np.asarray(expected.transparent))


def png_header(width: int, height: int) -> bytes:
    """A PNG of a large size by its header, with no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\0" * 100, "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture"),
        (b"<!doctype html><html>", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (FILES["turned.jpg"][:300], "no picture"),
        (FILES["grey.png"][:-200], "no picture"),
        (png_header(1, 1), "no picture"),
        (png_header(60_000, 60_000), "no picture|60000x60000"),
        (png_header(500, 500), "is 500x500; at most 100,000 pixels"),
        (png_header(3000, 2), "is 3000x2"),
    ],
)
def test_others_are_refused(content, words):
    with pytest.raises(UserError, match=words) as error:
        decode_upload(content, CONFIG, "mask")
    assert error.value.field == "mask" and "\n" not in str(error.value)


def test_damage_is_never_more_than_a_refusal():
    for number in range(300):
        content = bytearray(list(FILES.values())[number % len(FILES)])
        for place in RANDOM.integers(0, len(content), 8):
            content[place] = RANDOM.integers(0, 256)
        try:
            decode_upload(bytes(content), CONFIG)
        except UserError:
            pass


def test_results_are_enlarged_up_to_a_limit():
    pixels = torch.arange(4, dtype=torch.uint8).reshape(1, 2, 2)
    content = asyncio.run(encode(pixels, size=(1000, 1000)))
    assert content == encode_now(pixels, size=(1000, 1000)) and Image.open(io.BytesIO(content)).size == (1000, 1000)
    check_results(1000, None, CONFIG)
    check_results(10, (100, 100), CONFIG)
    with pytest.raises(UserError, match="too large for 11 images"):
        check_results(11, (100, 100), CONFIG)
