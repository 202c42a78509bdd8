"""Images of any size and mode, read for a model.

Modes become 8-bit grey or RGB as in `unistep.data.prepare`; the size is fitted, see `unistep.images.frame`.
Transparency can mark what is to be painted: then colours are resized weighted by their opacity, so that no hidden
colour enters, and the opaque pixels are known.
"""

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
from unistep.data.files import FolderFiles
from unistep.data.prepare import decode, decode_transparent, flatten, to_pixels
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
_MOST_BYTES = 1 << 30


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
    source: Source, shape: tuple[int, int, int], fit: Fit = "crop", *, alpha: bool = False, name: str | None = None
) -> Picture:
    """Reads an image for a model.

    Args:
        source: file, Pillow image, or pixels.
        shape: channels, 1 or 3, height and width of the model's images.
        fit: way to fit the image to that size, see `unistep.images.frame`.
        alpha: whether transparency marks unknown pixels; else transparent pixels are laid on white.
        name: name in messages; default: the file's.

    Raises:
        UserError: the image cannot be read, or would be stretched.
    """
    channels, target = shape[0], (shape[2], shape[1])
    if channels not in (1, 3):
        raise UserError(f"the model's images have {channels} channels; pictures have 1 (grey) or 3 (colour)")
    name = name or name_of(source)
    image, transparent = decoded(source, name, alpha)
    where = frame(image.size, target, fit, name)
    note = where.describe()
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
    """

    source: Source
    name: str

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
    return found


def _list_files(name: str | os.PathLike[str], field: str) -> list[ImageInput]:
    if not str(name).strip():
        raise UserError("is empty", "give an image or a folder of images", field=field)
    path = user_path(name)
    if not path.is_dir():
        check_image_file(path, field)
        return [ImageInput(path, path.stem)]
    inside = FolderFiles(path, str(name)).names
    if not inside:
        raise UserError(f"{shown(name)}: no images are in it; PNG, JPEG and the like are looked for", field=field)
    return [ImageInput(path / n, str(Path(n).with_suffix(""))) for n in inside]


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


def decoded(source: Source, name: str, alpha: bool) -> tuple[Image.Image, Image.Image | None]:
    """Decodes an image.

    Args:
        source: path, Pillow image, or pixels.
        name: name in messages.
        alpha: whether the transparency is returned too.

    Returns:
        The image in mode L or RGB, and in mode RGBA; None for the latter if it is opaque or `alpha` is false.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if isinstance(source, Tensor):
            source = to_pil(source)
        if isinstance(source, Image.Image):
            return _from_pillow(source, alpha)
        path = user_path(source)
        check_image_file(path)
        content = path.read_bytes()
        transparent = decode_transparent(content) if alpha else None
        return decode(content), transparent
    except BadImage as error:
        raise UserError(f"{name}: {error}; give a PNG, JPEG or the like that opens elsewhere") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from None


def _from_pillow(image: Image.Image, alpha: bool) -> tuple[Image.Image, Image.Image | None]:
    try:
        transparent = image.convert("RGBA") if alpha and image.has_transparency_data else None
        return flatten(image.copy()), transparent
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
