"""Conversion of an image file's bytes to the pixels of a dataset, with Pillow.

Every image becomes 8-bit grey or RGB: upright (EXIF orientation), transparent pixels composited on white, 16-bit grey
scaled to 8 bits, CMYK and palettes converted. Embedded colour profiles are not applied, as in the published tools.
Cropping and resizing are those of EDM's dataset_tool (`--transform=center-crop`): the central square, then one Lanczos
resize, whose support grows with the reduction (antialiasing).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from unistep.data.reader import BadImage, Pixels
from unistep.text import shown

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "AVIF", "JPEG2000")
"""The formats Pillow may decode here. The list is closed as others run programs (EPS) or are no images (PDF)."""

SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .avif .jp2 .j2k".split()
)
"""Suffixes, in lower case, of the files that are taken for images."""

_WIDE_GREY = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_QUARTER_TURNS = (5, 6, 7, 8)
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class Header:
    """The header of an image file, before its pixels are decoded.

    Args:
        width, height: size in pixels when upright.
        mode: Pillow's mode.
        grey: true if the image is grey.
    """

    width: int
    height: int
    mode: str
    grey: bool


def read_header(content: bytes) -> Header:
    """Reads the header of an encoded image.

    Args:
        content: the file, or the first part of it.

    Raises:
        BadImage: the file is no image of a known format, or the part is too short.
    """
    try:
        with _open(content) as image:
            width, height = _upright_size(image)
            return Header(width, height, image.mode, _is_grey(image))
    except Exception as error:
        raise BadImage(_reason(error)) from error


def decode(content: bytes) -> Image.Image:
    """Decodes an image file to upright 8-bit pixels in mode `L` or `RGB`.

    Raises:
        BadImage: the file is damaged, or no image of a known format.
    """
    # Pillow's decoders raise nearly every built-in exception on damaged files (SyntaxError and struct.error among
    # them), so anything raised in here means that this file is bad.
    try:
        with _open(content) as image:
            return flatten(image)
    except Exception as error:
        raise BadImage(_reason(error)) from error


def decode_transparent(content: bytes) -> Image.Image | None:
    """Decodes an image file that has transparency to upright mode `RGBA`; None for one that has none.

    Raises:
        BadImage: the file is damaged, or no image of a known format.
    """
    try:
        with _open(content) as image:
            image.load()
            return _upright(image).convert("RGBA") if image.has_transparency_data else None
    except Exception as error:
        raise BadImage(_reason(error)) from error


def flatten(image: Image.Image) -> Image.Image:
    """Converts a Pillow image of any mode to upright 8-bit pixels in mode `L` or `RGB`; it is turned in place."""
    grey = _is_grey(image)
    image.load()
    return _flatten(_upright(image), grey)


def fit(image: Image.Image, resolution: int | None) -> Image.Image:
    """Crops an image to its central square and resizes it.

    Args:
        image: the image.
        resolution: side in pixels; None leaves the image as it is.
    """
    if resolution is None:
        return image
    width, height = image.size
    side = min(width, height)
    if (width, height) != (side, side):
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image if side == resolution else image.resize((resolution, resolution), Image.Resampling.LANCZOS)


def to_pixels(image: Image.Image, channels: int) -> Pixels:
    """The pixels [C, H, W] of an image.

    Args:
        image: image in mode `L` or `RGB`.
        channels: 1 (ITU-R 601 luma) or 3.
    """
    if channels == 1:
        return np.asarray(image.convert("L"))[None]
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def composite_on_white(image: Image.Image) -> Image.Image:
    """Composites an image of any 8-bit mode with transparency on white; mode `RGB`."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _open(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=_available_formats())


@cache
def _available_formats() -> tuple[str, ...]:
    # AVIF and JPEG 2000 depend on how Pillow was built, and Image.open refuses a name that it does not know.
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image turned by its EXIF orientation; pixels are decoded only for TIFF."""
    if image.format == "TIFF":
        return _upright(image).size  # whether Pillow's TIFF reader turns the size itself depends on its version
    if image.format == "PNG" and "exif" not in image.info:
        return image.size  # asking would decode the pixels, as PNG may carry EXIF after them
    turned = image.getexif().get(_ORIENTATION_TAG) in _QUARTER_TURNS
    return (image.height, image.width) if turned else image.size


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which are already decoded
        pass
    return image


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None:
        layout, entries = image.palette.getdata()
        stride = {"RGB": 3, "BGR": 3, "BGRX": 4, "RGBX": 4}.get(layout)
        if stride is None:
            return False
        colours = np.frombuffer(bytes(entries), np.uint8)
        colours = colours[: len(colours) // stride * stride].reshape(-1, stride)[:, :3]
        return bool((colours == colours[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", *_WIDE_GREY)


def _flatten(image: Image.Image, grey: bool) -> Image.Image:
    """8 bits, no transparency; mode `L` for grey images and `RGB` for others."""
    if image.mode in _WIDE_GREY:
        return _reduce_to_8_bits(image)
    if image.mode == "F":
        raise BadImage("its pixels are floating-point numbers of no known range")
    if image.has_transparency_data:
        image = composite_on_white(image)
    mode = "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _reduce_to_8_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion to L clips at 255 instead of scaling.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("its pixels are integers of more than 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, BadImage):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"it decodes to more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, Pillow's limit for safety"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image in a format that can be read here"
    return shown(error) or type(error).__name__
