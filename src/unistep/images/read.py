"""Images of any size and mode, fitted to a model; nothing is stretched.

Ways to fit an image of another size, `Fit`:

    crop    the largest central part of the model's proportions, resized (Lanczos, antialiased)
    resize  the whole image, resized; refused where its proportions are others than the model's
    pad     the whole image, resized into the middle; the margin is filled with its border and cut off in the end
    tiles   not resized: the model works on overlapping tiles, see `unistep.editing.tiled`; an image smaller than the
            model is enlarged

Modes become 8-bit grey or RGB as in `unistep.data.prepare`. Transparency can mark what is to be painted: then colours
are resized weighted by their opacity, so that no hidden colour enters, and the opaque pixels are known.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image
from torch import Tensor

from unistep.data.files import FolderFiles
from unistep.data.prepare import decode, decode_transparent, flatten, to_pixels
from unistep.data.reader import BadImage
from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.images.grid import to_pil
from unistep.text import nearest_path, shown

Fit = Literal["crop", "resize", "pad", "tiles"]
FITS: tuple[Fit, ...] = get_args(Fit)
Source = str | os.PathLike[str] | Image.Image | Tensor
"""A file, a Pillow image, or pixels uint8 [C, H, W]."""
Images = Source | Iterable[Source]
"""Files, folders, Pillow images or pixels uint8 [C, H, W], one or several; or pixels [N, C, H, W]."""
Box = tuple[int, int, int, int]

_MOST_BYTES = 1 << 30
_MOST_PIXELS = 1 << 26  # of what a model works on: with `tiles` that is as large as the image

_MASK_TOLERANCE = 0.01  # masks are often scaled by other programs, which round


@dataclass(frozen=True)
class Frame:
    """Place of an image in the pixels that a model works on: `box` of the image becomes `inside` of the target.

    Args:
        source: width and height of the image.
        box: left, upper, right, lower of the part that is taken, in pixels of the image.
        target: width and height of the pixels that the model works on.
        inside: left, upper, right, lower of that part in the target; the rest is margin.
    """

    source: tuple[int, int]
    box: Box
    target: tuple[int, int]
    inside: tuple[int, int, int, int]

    @property
    def inside_size(self) -> tuple[int, int]:
        """Width and height of the image in the target."""
        left, upper, right, lower = self.inside
        return right - left, lower - upper

    @property
    def has_margin(self) -> bool:
        """Whether the image fills only a part of the target."""
        return self.inside_size != self.target

    @property
    def resized(self) -> bool:
        """Whether the image's pixels are resampled."""
        return (self.box[2] - self.box[0], self.box[3] - self.box[1]) != self.inside_size

    def describe(self) -> str:
        """Returns what is done to the image, in words; empty where nothing is."""
        width, height = (self.box[2] - self.box[0], self.box[3] - self.box[1])
        done = []
        if (width, height) != self.source:
            done.append(f"its central {width}x{height} is taken")
        if self.resized:
            verb = "enlarged" if self.inside_size[0] > width else "reduced"
            done.append(f"{verb} to {self.inside_size[0]}x{self.inside_size[1]}")
        if self.has_margin:
            done.append(f"a margin fills {self.target[0]}x{self.target[1]} and is cut off again")
        return ", ".join(done)


@dataclass(frozen=True)
class Picture:
    """An image in the model's form.

    Args:
        pixels: pixels of the whole target, margins filled.
        known: mask, False where the image is transparent, which is white then; None for an opaque image. The margin
            is False.
        frame: place of the image in the target.
        name: name in messages.
        note: what was done to the image, in words; empty where nothing was.
        lost_colour: whether a coloured image became grey.
    """

    pixels: UInt8[Tensor, "C H W"]
    known: Bool[Tensor, "H W"] | None
    frame: Frame
    name: str = "the image"
    note: str = ""
    lost_colour: bool = False

    @property
    def is_reduced(self) -> bool:
        """Whether the image has more pixels than were taken of it."""
        return self.frame.source[0] * self.frame.source[1] > self.frame.inside_size[0] * self.frame.inside_size[1]


def frame(source: tuple[int, int], target: tuple[int, int], fit: Fit, name: str = "the image") -> Frame:
    """Returns the place of an image in the pixels that a model works on.

    Args:
        source: width and height of the image.
        target: width and height of the model's images.
        fit: way to fit the image, see the module's text.
        name: name in messages.

    Raises:
        UserError: the image would be stretched, `fit` is unknown, or the tiles would hold too many pixels.
    """
    (width, height), (goal_width, goal_height) = source, target
    whole: Box = (0, 0, width, height)
    if fit == "crop":
        scale = min(width / goal_width, height / goal_height)
        w, h = (max(1, min(side, round(goal * scale))) for side, goal in zip(source, target, strict=True))
        left, upper = (width - w) // 2, (height - h) // 2
        return Frame(source, (left, upper, left + w, upper + h), target, (0, 0, *target))
    if fit == "resize":
        if not _same_proportions(source, target):
            raise UserError(
                f"{name} is {width}x{height} and would be stretched to {goal_width}x{goal_height}",
                'give `fit="crop"`, or pad to keep all of it',
            )
        return Frame(source, whole, target, (0, 0, *target))
    if fit == "pad":
        scale = max(width / goal_width, height / goal_height)
        w, h = (max(1, min(goal, round(side / scale))) for side, goal in zip(source, target, strict=True))
        left, upper = (goal_width - w) // 2, (goal_height - h) // 2
        return Frame(source, whole, target, (left, upper, left + w, upper + h))
    if fit == "tiles":
        scale = max(1.0, goal_width / width, goal_height / height)
        grown = (max(goal_width, round(width * scale)), max(goal_height, round(height * scale)))
        if grown[0] * grown[1] > _MOST_PIXELS:
            raise UserError(
                f"{name} would make {grown[0]}x{grown[1]} pixels of tiles", 'give `fit="crop"`, or a smaller one'
            )
        return Frame(source, whole, grown, (0, 0, *grown))
    raise UserError(f"{fit!r} is unknown", f"give one of {', '.join(FITS)}", field="fit")


def read_picture(
    source: Source, shape: tuple[int, int, int], fit: Fit = "crop", *, alpha: bool = False, name: str | None = None
) -> Picture:
    """Reads an image for a model.

    Args:
        source: file, Pillow image, or pixels.
        shape: channels, 1 or 3, height and width of the model's images.
        fit: way to fit the image to that size, see the module's text.
        alpha: whether transparency marks unknown pixels; else transparent pixels are laid on white.
        name: name in messages; default: the file's.

    Raises:
        UserError: the image cannot be read, or would be stretched.
    """
    channels, target = shape[0], (shape[2], shape[1])
    if channels not in (1, 3):
        raise UserError(f"the model's images have {channels} channels; pictures have 1 (grey) or 3 (colour)")
    name = name or (shown(source) if isinstance(source, str | os.PathLike) else "the image")
    image, transparent = _decoded(source, name, alpha)
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
    known = _placed_mask(opacity == 255, where)
    return Picture(torch.where(known, pixels, 255).to(torch.uint8), known, where, name, note, lost_colour)


def read_mask(source: Source, where: Frame, *, name: str | None = None) -> Bool[Tensor, "H W"]:
    """Reads a mask, white where to paint and black where the image stays, as True where a pixel is known.

    A mask of another size than the image's is resized to it by nearest pixels and taken the same way; one of the
    model's size is taken as it is. Grey counts as the nearer of both, transparent as white.

    Args:
        source: file, Pillow image, or pixels.
        where: frame of the image.
        name: name in messages; default: the file's.

    Raises:
        UserError: the mask cannot be read, is of other proportions, or marks nothing or everything.
    """
    name = name or (shown(source) if isinstance(source, str | os.PathLike) else "the mask")
    mask, _ = _decoded(source, name, False)
    painted = mask.convert("L")
    if _same_proportions(painted.size, where.source, _MASK_TOLERANCE):
        scale_x, scale_y = (m / s for m, s in zip(painted.size, where.source, strict=True))
        left, upper, right, lower = where.box
        box = (left * scale_x, upper * scale_y, right * scale_x, lower * scale_y)
        taken = painted.resize(where.inside_size, Image.Resampling.NEAREST, box=box)
        known = _placed_mask(np.asarray(taken) < 128, where)
    elif painted.size == where.target:
        known = torch.from_numpy(np.asarray(painted) < 128)
    else:
        raise UserError(
            f"mask {name} is {painted.width}x{painted.height} and fits neither the image's "
            f"{where.source[0]}x{where.source[1]} nor the model's {where.target[0]}x{where.target[1]}; "
            "give one of the same proportions"
        )
    check_mask(known, where, f"mask {name}")
    return known


def check_mask(known: Bool[Tensor, "H W"], where: Frame, name: str) -> None:
    """Refuses a mask by which all pixels are known, or none.

    Raises:
        UserError: all pixels are known, or none.
    """
    size = f"{where.target[0]}x{where.target[1]}"
    left, upper, right, lower = where.inside
    if bool(known[upper:lower, left:right].all()):
        raise UserError(f"{name} marks nothing to paint at {size}; draw white over what is to be painted, and wider")
    if not bool(known.any()):
        raise UserError(f"{name} marks everything at {size}, and nothing is known; draw black over what stays")


def cut_margin(images: Shaped[Tensor, "*N H W"], inside: tuple[int, int, int, int]) -> Shaped[Tensor, "*N h w"]:
    """Returns images or masks without the margin of a frame; `inside` is left, upper, right, lower of the rest."""
    left, upper, right, lower = inside
    return images[..., upper:lower, left:right]


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
    found: list[ImageInput] = []
    for image in images:
        if isinstance(image, str | os.PathLike):
            found += _list_files(image, field)
            continue
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
    path = Path(name).expanduser()
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


def _decoded(source: Source, name: str, alpha: bool) -> tuple[Image.Image, Image.Image | None]:
    """Returns the image in mode L or RGB, and in mode RGBA where `alpha` is asked for and there."""
    try:
        if isinstance(source, Tensor):
            source = to_pil(source)
        if isinstance(source, Image.Image):
            return _from_pillow(source, alpha)
        path = Path(source).expanduser()
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


def _placed_mask(known: np.ndarray, where: Frame) -> Bool[Tensor, "H W"]:
    left, upper, right, lower = where.inside
    placed = torch.zeros(where.target[1], where.target[0], dtype=torch.bool)
    placed[upper:lower, left:right] = torch.from_numpy(np.ascontiguousarray(known))
    return placed


def _same_proportions(a: tuple[int, int], b: tuple[int, int], tolerance: float = 0.0) -> bool:
    """Whether one size is the other scaled, to less than a pixel of the smaller or a share of its side."""
    (width, height), (of_width, of_height) = sorted((a, b), key=lambda size: size[0] * size[1])
    off_width = abs(width - height * of_width / of_height)
    off_height = abs(height - width * of_height / of_width)
    return off_width < max(1, tolerance * width) and off_height < max(1, tolerance * height)
