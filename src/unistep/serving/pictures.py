"""Pictures that come and go: uploads decoded within limits, results encoded."""

import base64
import io
import re
import warnings

from PIL import Image, ImageOps
from torch import Tensor

from unistep.errors import UserError
from unistep.images.grid import to_pil
from unistep.serving.config import ServerConfig

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""Formats of results and their media types."""

_UPLOADS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_MOST_SIDE = 4096


def read_upload(content: bytes, config: ServerConfig, field: str = "image") -> Image.Image:
    """Returns an uploaded picture, upright, of at most the configured size.

    Args:
        content: bytes of a PNG, JPEG, WebP, GIF (its first frame) or BMP.
        config: limits.
        field: name of the field in messages.

    Raises:
        UserError: it is none of these, damaged, or too large.
    """
    if not content:
        raise UserError("is empty", "send the bytes of a PNG or JPEG", field=field)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=_UPLOADS)
            width, height = image.size
            if width * height > config.max_pixels or max(width, height) > config.max_side:
                most = f"{config.max_pixels:,} pixels and sides of {config.max_side:,}"
                raise UserError(f"is {width}x{height}; at most {most} are taken", "send a smaller one", field=field)
            image.load()
            return ImageOps.exif_transpose(image)
    except UserError:
        raise
    except Exception:  # Pillow's readers raise whatever the damage leads to
        raise UserError("is no picture that can be read", "send a whole PNG, JPEG or WebP", field=field) from None


def parse_size(size: str | None, shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """Returns width and height of a size such as 256x256; None for the model's own.

    Raises:
        UserError: it is no size, or too large.
    """
    if size is None or size == "auto":
        return None
    match = _SIZE.fullmatch(size)
    if not match or max(int(match[1]), int(match[2])) > _MOST_SIDE:
        own = f"{shape[2]}x{shape[1]}"
        raise UserError(f"{size!r} is no size up to {_MOST_SIDE}x{_MOST_SIDE}", f"give auto, or {own}", field="size")
    return int(match[1]), int(match[2])


def encode(pixels: Tensor, kind: str = "png", size: tuple[int, int] | None = None) -> bytes:
    """Returns an image as a file.

    Args:
        pixels: pixels uint8 [C, H, W].
        kind: format, a key of `FORMATS`.
        size: width and height; whole multiples of the image's repeat its pixels, others are interpolated.
    """
    image = to_pil(pixels)
    if size is not None and size != image.size:
        whole = size[0] % image.width == 0 and size[1] % image.height == 0
        image = image.resize(size, Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format=kind.upper(), **({"compress_level": 1} if kind == "png" else {"quality": 95}))
    return file.getvalue()


def data_url(content: bytes, kind: str = "png") -> str:
    """Returns a file as a `data:` URL."""
    return f"data:{FORMATS[kind]};base64,{base64.b64encode(content).decode()}"
