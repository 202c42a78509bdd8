"""Pictures that come and go: uploads decoded within limits, results encoded."""

import asyncio
import base64
import io
import re

from PIL import Image
from torch import Tensor

from unistep.data.prepare import decode, decode_transparent, stored_size
from unistep.data.reader import BadImage
from unistep.errors import UserError
from unistep.images.grid import to_pil
from unistep.images.png import png_bytes
from unistep.serving.config import ServerConfig

FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""Formats of results and their media types."""

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_MOST_SIDE = 4096
_SMALL = 1 << 14  # bytes of pixels below which speed counts for more than the size of the file
_LARGE = 1 << 17  # pixels from which on a file takes longer than a change of threads


async def read_upload(content: bytes, config: ServerConfig, field: str = "image") -> Image.Image:
    """Returns an uploaded picture, decoded on a thread, so that other requests go on; see `decode_upload`."""
    return await asyncio.to_thread(decode_upload, content, config, field)


def decode_upload(content: bytes, config: ServerConfig, field: str = "image") -> Image.Image:
    """Returns an uploaded picture, upright and of 8 bits, in mode `L`, `RGB` or, where it has transparency, `RGBA`.

    It is decoded as an image file of `unistep.edit` is: by what it holds, whatever it is called.

    Args:
        content: bytes of a PNG, JPEG, WebP, GIF (its first frame) or another format that is read from files.
        config: limits.
        field: name of the field in messages.

    Raises:
        UserError: it is none of these, damaged, or too large.
    """
    if not content:
        raise UserError("is empty", "send the bytes of a PNG or JPEG", field=field)
    try:
        width, height = stored_size(content)
        if width * height > config.max_pixels or max(width, height) > config.max_side:
            most = f"{config.max_pixels:,} pixels and sides of {config.max_side:,}"
            raise UserError(f"is {width}x{height}; at most {most} are taken", "send a smaller one", field=field)
        return decode_transparent(content) or decode(content)
    except BadImage as error:
        raise UserError(f"is no picture that can be read: {error}", "send a whole PNG or JPEG", field=field) from None


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
        raise UserError(
            f"{size[:20]!r} is no size up to {_MOST_SIDE}x{_MOST_SIDE}", f"give auto, or {own}", field="size"
        )
    return int(match[1]), int(match[2])


def check_results(count: int, size: tuple[int, int] | None, config: ServerConfig) -> None:
    """Refuses more enlarged pixels than one request may ask for.

    Args:
        count: number of images.
        size: width and height of each; None for the model's own.
        config: limits.

    Raises:
        UserError: they are too many.
    """
    if size is not None and count * size[0] * size[1] > config.max_pixels:
        message = f"{size[0]}x{size[1]} is too large for {count} images"
        raise UserError(message, f"{config.max_pixels:,} pixels are made for one request", field="size")


async def encode(pixels: Tensor, kind: str = "png", size: tuple[int, int] | None = None) -> bytes:
    """Returns an image as a file; a large one is encoded on a thread. The arguments are those of `encode_now`."""
    width, height = size or (pixels.shape[2], pixels.shape[1])
    if width * height < _LARGE:
        return encode_now(pixels, kind, size)
    return await asyncio.to_thread(encode_now, pixels, kind, size)


def encode_now(pixels: Tensor, kind: str = "png", size: tuple[int, int] | None = None) -> bytes:
    """Returns an image as a file.

    Args:
        pixels: pixels uint8 [C, H, W].
        kind: format, a key of `FORMATS`.
        size: width and height; whole multiples of the image's repeat its pixels, others are interpolated.
    """
    if kind == "png" and size in (None, (pixels.shape[2], pixels.shape[1])) and pixels.numel() < _SMALL:
        return png_bytes(pixels)
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
