"""Images of any size and mode, read for a model.

Modes become 8-bit grey or RGB as in `unistep.data.prepare`; the size is fitted, see `unistep.images.frame`.
Transparency can mark what is to be painted: then colours are resized weighted by their opacity, so that no hidden
colour enters, and the opaque pixels are known.
"""

import functools
import logging
import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from unistep.checks import user_path
from unistep.data.encoded import MAYBE_WIDE, WIDE_PNG
from unistep.data.files import FolderFiles, passed_over_line
from unistep.data.frames import further_frames
from unistep.data.grey import WIDE_MODES, GreyRange
from unistep.data.inventory import passed_over
from unistep.data.png import SIGNATURE
from unistep.data.prepare import decode, decode_transparent, flatten, to_pixels, upright, wide_range
from unistep.data.reader import BadImage
from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.images.frame import Fit, Frame, frame, placed_mask
from unistep.images.grid import to_pil
from unistep.text import nearest_path, shown

Source = str | os.PathLike[str] | Image.Image | Tensor
"""A file, a Pillow image, or pixels uint8 [C, H, W]."""
Images = Source | Iterable[Source]
"""Files, folders, Pillow images or pixels uint8 [C, H, W], one or several; or pixels [N, C, H, W]."""
_MOST_BYTES = 1 << 28
_log = logging.getLogger("unistep")


@dataclass(frozen=True)
class Picture:
    """An image in the model's form.

    Args:
        pixels: pixels of the whole target, margins filled.
        known: mask, False where the image is transparent, which is white then; None for an opaque image. The margin
            is False.
        frame: place of the image in the target.
        name: name in messages.
        note: description of the changes that brought the image to the target; empty for none.
        lost_colour: whether a coloured image became grey.
    """

    pixels: UInt8[Tensor, "C H W"]
    known: Bool[Tensor, "H W"] | None
    frame: Frame
    name: str = "the image"
    note: str = ""
    lost_colour: bool = False


def read_picture(
    source: Source,
    shape: tuple[int, int, int],
    fit: Fit = "crop",
    *,
    alpha: bool = False,
    name: str | None = None,
    grey_bits: int | None = None,
) -> Picture:
    """Reads an image for a model.

    Args:
        source: file, Pillow image, or pixels.
        shape: channels, 1 or 3, height and width of the model's images.
        fit: way to fit the image to that size, see `unistep.images.frame`.
        alpha: whether transparency marks unknown pixels; else transparent pixels are laid on white.
        name: name in messages; default: the file's.
        grey_bits: number of bits that count if the image is of 16 bits; default: those of the image alone.

    Raises:
        UserError: the image cannot be read, or would be stretched.
    """
    channels, target = shape[0], (shape[2], shape[1])
    if channels not in (1, 3):
        raise UserError(f"the model's images have {channels} channels; pictures have 1 (grey) or 3 (colour)")
    name = name or name_of(source)
    image, transparent, further = decoded(source, name, alpha, grey_bits)
    where = frame(image.size, target, fit, name)
    note = where.describe()
    if further:
        note = ", ".join(filter(None, [f"the first of its {further + 1} pages or frames is taken", note]))
    lost_colour = channels == 1 and _has_colour(image, where)
    if lost_colour:
        note = ", ".join(filter(None, [note, "its colour is left out"]))
    if transparent is None:
        return Picture(_placed(to_pixels(_scaled(image, where), channels), where), None, where, name, note, lost_colour)
    pixels = _placed(to_pixels(_scaled(transparent, where).convert("RGB"), channels), where)
    opacity = np.asarray(_scaled(transparent.getchannel("A"), where, Image.Resampling.BOX))
    # What was erased is to be painted: pixels that are not opaque have mixed with what is gone.
    known = placed_mask(opacity == 255, where)
    return Picture(torch.where(known, pixels, 255).to(torch.uint8), known, where, name, note, lost_colour)


class ImageInput(NamedTuple):
    """One image that is given.

    Args:
        source: file, Pillow image, or pixels.
        name: name of its result: for a file its name below the folder that was given, without its ending.
        grey_bits: number of bits that count if it is of 16 bits; None for another image.
    """

    source: Source
    name: str
    grey_bits: int | None = None

    @property
    def label(self) -> str:
        """The name in messages."""
        return shown(self.source) if isinstance(self.source, str | os.PathLike) else f"image {self.name}"


def list_images(images: Images, field: str = "image") -> list[ImageInput]:
    """Returns the images that are given, in order; a folder gives all images below it.

    Args:
        images: files, folders, Pillow images or pixels.
        field: name of the parameter, for messages.

    Raises:
        UserError: there are none, one does not exist, or pixels are no uint8 [C, H, W].
    """
    if isinstance(images, Tensor) and images.ndim == 4:
        images = list(images)
    elif isinstance(images, str | os.PathLike | Image.Image | Tensor):
        images = [images]
    elif not isinstance(images, Iterable):
        images = [images]
    found: list[ImageInput] = []
    for image in images:
        if isinstance(image, str | os.PathLike):
            found += _list_files(image, field)
            continue
        if not isinstance(image, Image.Image | Tensor):
            kinds = "files, Pillow images, or uint8 tensors [C, H, W]"
            raise UserError(f"is of type {type(image).__name__}", f"give {kinds}", field=field)
        if isinstance(image, Tensor) and (image.dtype != torch.uint8 or image.ndim != 3):
            form = f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
            raise UserError(f"is {form}; give uint8 [C, H, W] or [N, C, H, W]", field=field)
        found.append(ImageInput(image, f"{len(found):06d}"))
    if not found:
        raise UserError("is missing", "give an image or a folder of images", field=field)
    return _with_grey_bits(found)


def _with_grey_bits(found: list[ImageInput]) -> list[ImageInput]:
    """The inputs with the bits that count in all of their images of 16 bits, so that none is brightened alone."""
    ranges = {number: one for number, image in enumerate(found) if (one := _grey_range(image.source)) is not None}
    if not ranges:
        return found
    whole = functools.reduce(operator.or_, ranges.values())
    if whole.bits < 16:
        first = found[next(iter(ranges))].label
        others = f" and {len(ranges) - 1} more" if len(ranges) > 1 else ""
        _log.warning(
            "%s%s: 16 bits with values up to %s, read as %d bits",
            *(first, others, f"{whole.highest:,}", whole.bits),
        )
    return [image._replace(grey_bits=whole.bits) if number in ranges else image for number, image in enumerate(found)]


def _grey_range(source: Source) -> GreyRange | None:
    """The range of an image of 16 bits; None for another, and for one that cannot be read."""
    try:
        if isinstance(source, Image.Image):
            return GreyRange.of(source) if source.mode in WIDE_MODES else None
        if isinstance(source, Tensor) or Path(source).suffix.lower() not in MAYBE_WIDE:
            return None
        with open(source, "rb") as file:
            start = file.read(64)
            if start.startswith(SIGNATURE) and start[24:25] != WIDE_PNG:
                return None
            content = start + file.read(_MOST_BYTES)
        return wide_range(content)
    except (BadImage, OSError):
        return None


def _list_files(name: str | os.PathLike[str], field: str) -> list[ImageInput]:
    if not str(name).strip():
        raise UserError("is empty", "give an image or a folder of images", field=field)
    path = user_path(name)
    if not path.is_dir():
        check_image_file(path, field)
        return [ImageInput(path, path.stem)]
    files = FolderFiles(path, str(name))
    but = f" ({passed_over(files.passed)} passed over)" if files.passed else ""
    if not files.names:
        raise UserError(f"{shown(name)}: no images are in it{but}; PNG, JPEG and the like are looked for", field=field)
    if files.passed:
        _log.warning("%s", passed_over_line(files))
    pairs = zip(files.names, files.spelled, strict=True)
    return [ImageInput(path / spelled, str(Path(one).with_suffix(""))) for one, spelled in pairs]


def check_image_file(path: Path, field: str = "") -> None:
    """Refuses a path at which no file can be read; `field` is the name of the parameter.

    Raises:
        UserError: there is none, or it is something else.
    """
    try:
        similar = None if path.exists() or path.is_symlink() else nearest_path(path)
    except (OSError, ValueError):
        similar = None
    remedy = "give an image" if similar is None else f"did you mean {shown(similar)}?"
    try:
        check_regular_file(path, remedy, most_bytes=_MOST_BYTES)
    except UserError as error:
        raise UserError(shown(error), field=field) from None


def name_of(source: Source, otherwise: str = "the image") -> str:
    """Returns the name of an image in messages: the file's, or `otherwise`."""
    return shown(source) if isinstance(source, str | os.PathLike) else otherwise


class Decoded(NamedTuple):
    """A decoded image.

    Args:
        image: image in mode L or RGB.
        transparent: image in mode RGBA; None if it is opaque, or was not asked for.
        further: number of pages or frames after this one in its file.
    """

    image: Image.Image
    transparent: Image.Image | None
    further: int = 0


def decoded(source: Source, name: str, alpha: bool, grey_bits: int | None = None) -> Decoded:
    """Decodes an image.

    Args:
        source: path, Pillow image, or pixels.
        name: name in messages.
        alpha: whether the transparency is returned too.
        grey_bits: number of bits that count if the image is of 16 bits; None takes those of the image alone.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if isinstance(source, Tensor):
            source = to_pil(source)
        if isinstance(source, Image.Image):
            return _from_pillow(source, alpha, grey_bits)
        path = user_path(source)
        check_image_file(path)
        content = path.read_bytes()
        transparent = decode_transparent(content, bits=grey_bits) if alpha else None
        return Decoded(decode(content, bits=grey_bits), transparent, further_frames(content))
    except BadImage as error:
        raise UserError(f"{name}: {error}; give a PNG, JPEG or the like that opens elsewhere") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from None


def _from_pillow(image: Image.Image, alpha: bool, grey_bits: int | None) -> Decoded:
    try:
        turned = upright(image.copy())
        transparent = turned.convert("RGBA") if alpha and turned.has_transparency_data else None
        return Decoded(flatten(turned, grey_bits), transparent)
    except BadImage:
        raise
    except Exception as error:  # whatever Pillow raises of a mode or a lazily opened file
        raise BadImage(shown(error) or type(error).__name__) from error


def _scaled(image: Image.Image, where: Frame, by: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """Returns the frame's box of an image at its size in the target; RGBA is weighted by opacity."""
    if where.box != (0, 0, *image.size):
        image = image.crop(where.box)
    return image if image.size == where.inside_size else image.resize(where.inside_size, by)


def _has_colour(image: Image.Image, where: Frame) -> bool:
    if image.mode == "L":
        return False
    pixels = np.asarray(_scaled(image, where))
    return bool((pixels != pixels[..., :1]).any())


def _placed(pixels: np.ndarray, where: Frame) -> UInt8[Tensor, "C H W"]:
    """Returns the target with its margin filled by the border."""
    left, upper, right, lower = where.inside
    margin = ((0, 0), (upper, where.target[1] - lower), (left, where.target[0] - right))
    return torch.from_numpy(np.ascontiguousarray(np.pad(pixels, margin, mode="edge")))
