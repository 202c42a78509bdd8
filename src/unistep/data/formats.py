"""The image formats that are read, and Pillow kept to what they need.

Embedded profiles and texts are not used, so that damaged or huge ones do not cost the image.
"""

from __future__ import annotations

import importlib
import io
import re
from functools import cache

from PIL import Image

from unistep.data.png import SIGNATURE, without_metadata
from unistep.data.reader import BadImage
from unistep.files import stand_in

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "AVIF", "JPEG2000", "HEIF", "JXL")
"""The formats Pillow may decode here. The list is closed as others run programs (EPS) or are no images (PDF)."""

SUFFIXES = frozenset(".png .jpg .jpeg .jpe .jfif .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .j2k".split())
"""Suffixes, in lower case, of the files that are taken for images."""

# Suffixes of formats that depend on how Pillow was built, or on a plugin: format and plugin.
_OPTIONAL = {
    ".avif": ("AVIF", "pillow_avif"),
    ".avifs": ("AVIF", "pillow_avif"),
    ".heic": ("HEIF", "pillow_heif"),
    ".heif": ("HEIF", "pillow_heif"),
    ".hif": ("HEIF", "pillow_heif"),
    ".jxl": ("JXL", "pillow_jxl"),
}

# The first box of a file of that family: its size, its type and its main brand. Phones' files are often renamed .jpg.
_HEIC = re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)


def can_read(suffix: str) -> bool:
    """Returns whether files of a suffix, in lower case, are read as images here."""
    if suffix in SUFFIXES:
        return True
    return suffix in _OPTIONAL and _has(*_OPTIONAL[suffix])


def open_image(content: bytes) -> Image.Image:
    """Opens an encoded image without its profile and texts; raises as Pillow does."""
    if content.startswith(SIGNATURE):
        content = without_metadata(content)
    elif found := stand_in(content[:512], "an image"):
        raise BadImage(f"it {found.removeprefix('cannot be read: it ')}")
    elif _HEIC.match(content) and b"avif" not in content[8:64] and not _has("HEIF", "pillow_heif"):
        raise BadImage("it is a HEIC image, whatever its name ends in; install pillow-heif, or save it as PNG or JPEG")
    return Image.open(io.BytesIO(content), formats=available_formats())


def available_formats() -> tuple[str, ...]:
    """Returns the formats that can be decoded here: Image.open refuses a name that it does not know."""
    _init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def _init() -> None:
    Image.init()


@cache
def _has(format: str, plugin: str) -> bool:
    """Whether Pillow decodes a format, if need be with a plugin that is installed."""
    _init()
    if format not in Image.OPEN:
        try:
            module = importlib.import_module(plugin)
            if format == "HEIF" and format not in Image.OPEN:
                module.register_heif_opener()
        except Exception:  # not installed, or installed and broken
            return False
    return format in Image.OPEN
