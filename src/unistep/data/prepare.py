"""Conversion of an image file's bytes to the pixels of a dataset, with Pillow.

Every image becomes 8-bit grey or RGB: upright (EXIF orientation), transparent pixels composited on white, 16-bit grey
scaled to 8 bits, CMYK and palettes converted. Embedded colour profiles are not applied, as in the published tools.
Cropping and resizing are those of EDM's dataset_tool (`--transform=center-crop`): the central square, then one Lanczos
resize, whose support grows with the reduction (antialiasing).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from unistep.data.formats import open_image
from unistep.data.grey import WIDE_MODES, GreyRange, to_8_bits
from unistep.data.names import brief
from unistep.data.quiet import quiet
from unistep.data.reader import BadImage, Pixels
from unistep.data.wide_png import is_wide_png, narrowed, range_of

MAX_PIXELS = 1 << 26
"""Most pixels that an image may be decoded to, 8192 x 8192: they take a quarter of a gigabyte, and each step of the
preparation as much. A larger JPEG is decoded at a half, a quarter or an eighth of its size where that is enough."""

_LARGE_PIXELS = 1 << 24
_QUARTER_TURNS = (5, 6, 7, 8)
_ORIENTATION_TAG = 0x0112

large = threading.RLock()
"""Lock for work on a large image: threads take their turns, so that memory is that of one."""


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

    @property
    def wide(self) -> bool:
        """Whether it is grey of 16 bits."""
        return self.mode in WIDE_MODES


def read_header(content: bytes) -> Header:
    """Reads the header of an encoded image.

    Args:
        content: the file, or the first part of it.

    Raises:
        BadImage: the file is no image of a known format, or the part is too short.
    """
    try:
        with quiet(), open_image(content) as image:
            width, height = _upright_size(image)
            return Header(width, height, image.mode, _is_grey(image))
    except Exception as error:
        raise BadImage(_reason(error)) from error


def stored_size(content: bytes) -> tuple[int, int]:
    """Returns width and height of an image file as its header has them, not turned; no pixels are decoded.

    Args:
        content: the file.

    Raises:
        BadImage: the file is no image of a known format.
    """
    try:
        with quiet(), open_image(content) as image:
            return image.size
    except Exception as error:
        raise BadImage(_reason(error)) from error


def decode(content: bytes, *, side: int | None = None, bits: int | None = None) -> Image.Image:
    """Decodes an image file to upright 8-bit pixels in mode `L` or `RGB`.

    Args:
        content: the file.
        side: shorter side that is needed, in pixels: JPEGs of more than `MAX_PIXELS` are then decoded smaller; None
            needs all pixels.
        bits: number of bits that count in grey images of 16 bits; None takes those of the image alone.

    Raises:
        BadImage: the file is damaged, no image of a known format, or too large.
    """
    # Pillow's decoders raise nearly every built-in exception on damaged files (SyntaxError and struct.error among
    # them), so anything raised in here means that this file is bad.
    try:
        with quiet(), open_image(content) as image, _in_turn(image):
            _reduce(image, side)
            return _flattened(narrowed(content, image, bits) if is_wide_png(content) else image, bits)
    except Exception as error:
        raise BadImage(_reason(error)) from error


def decode_transparent(content: bytes, *, bits: int | None = None) -> Image.Image | None:
    """Decodes an image file that has transparency to upright mode `RGBA`; None for one that has none.

    Args:
        content: the file.
        bits: number of bits that count in images of 16 bits; None takes those of the image alone.

    Raises:
        BadImage: the file is damaged, no image of a known format, or too large.
    """
    try:
        with quiet(), open_image(content) as image, _in_turn(image):
            _reduce(image, None)
            image.load()
            image = narrowed(content, image, bits) if is_wide_png(content) else image
            return _upright(image).convert("RGBA") if image.has_transparency_data else None
    except Exception as error:
        raise BadImage(_reason(error)) from error


def wide_range(content: bytes) -> GreyRange | None:
    """The range of an image of 16 bits; None for another image.

    Raises:
        BadImage: the file is damaged, no image of a known format, or too large.
    """
    try:
        with quiet(), open_image(content) as image, _in_turn(image):
            _reduce(image, None)
            if is_wide_png(content):
                return range_of(content, image)
            return GreyRange.of(image) if image.mode in WIDE_MODES else None
    except Exception as error:
        raise BadImage(_reason(error)) from error


def flatten(image: Image.Image, bits: int | None = None) -> Image.Image:
    """Converts a Pillow image of any mode to upright 8-bit pixels in mode `L` or `RGB`; it is turned in place.

    Args:
        image: the image.
        bits: number of bits that count in grey images of 16 bits; None takes those of the image alone.
    """
    with quiet():
        return _flattened(image, bits)


def upright(image: Image.Image) -> Image.Image:
    """Turns an image in place by its EXIF orientation, and returns it."""
    with quiet():
        return _upright(image)


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
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


@contextmanager
def _in_turn(image: Image.Image) -> Iterator[None]:
    """Holds `large` while a large image is in memory."""
    if image.width * image.height <= _LARGE_PIXELS:
        yield
        return
    with large:
        yield


def _reduce(image: Image.Image, side: int | None) -> None:
    """Has a JPEG of too many pixels decoded smaller, or refuses the image."""
    width, height = image.size
    if width * height <= MAX_PIXELS:
        return
    if side is not None and isinstance(image, JpegImageFile):
        for scale in (2, 4, 8):
            if width * height <= MAX_PIXELS * scale**2 and min(width, height) // scale >= side:
                image.draft(image.mode, (width // scale, height // scale))
                return
    raise BadImage(f"it has {width}x{height} pixels, more than the {MAX_PIXELS:,} that are decoded; reduce it first")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image turned by its EXIF orientation; pixels are decoded only for TIFF."""
    if image.format == "TIFF":
        with _in_turn(image):
            _reduce(image, None)
            return _upright(image).size  # whether Pillow's TIFF reader turns the size itself depends on its version
    if image.format == "PNG" and not {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"} & image.info.keys():
        return image.size  # asking would decode the pixels, as PNG may carry EXIF after them
    try:
        turned = image.getexif().get(_ORIENTATION_TAG) in _QUARTER_TURNS
    except Exception:  # a damaged EXIF block turns nothing
        turned = False
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
    return image.mode in ("1", "L", "LA", "La", *WIDE_MODES)


def _flattened(image: Image.Image, bits: int | None) -> Image.Image:
    """8 bits, no transparency; mode `L` for grey images and `RGB` for others."""
    grey = _is_grey(image)
    image.load()
    image = _upright(image)
    if image.mode in WIDE_MODES:
        return to_8_bits(image, GreyRange.of(image).bits if bits is None else bits)
    if image.mode == "F":
        raise BadImage("its pixels are floating-point numbers of no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = composite_on_white(image)
    mode = "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, BadImage):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    if isinstance(error, Image.DecompressionBombError):
        return f"it decodes to more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, Pillow's limit for safety"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image in a format that can be read here"
    return brief(error) or type(error).__name__
