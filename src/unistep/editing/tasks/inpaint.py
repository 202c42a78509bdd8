"""Inpainting: what a mask marks is painted, the rest stays."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from unistep.checks import user_path
from unistep.editing.levels import DefaultLevels
from unistep.editing.operators.mask import Inpainting, box, centre, left, lower, random, right, upper
from unistep.editing.operators.operator import Operator
from unistep.editing.tasks.measurement import DegradableTask
from unistep.editing.tasks.task import EditContext, Given, check_share
from unistep.errors import UserError
from unistep.images.frame import Frame
from unistep.images.mask import check_mask, read_mask
from unistep.images.read import ImageInput, Picture, list_images
from unistep.text import shown

_HALVES: dict[str, Callable[[tuple[int, int]], Tensor]] = {"lower": lower, "upper": upper, "left": left, "right": right}
_SHARE = 0.5
MASKS = (*_HALVES, "centre", "random", "box:TOP,LEFT,HEIGHT,WIDTH")


@dataclass(frozen=True, kw_only=True)
class Inpaint(DegradableTask):
    """Paints what a mask marks.

    Args:
        mask: image that is white where to paint, or a folder of such with the images' names; or one of `MASKS`;
            default: where the image is transparent.
        share: share of the pixels that the mask `random` leaves known; default: 0.5.
    """

    default = DefaultLevels(5.0, 0.2, steps=9, settle=3)
    operator_name = "inpainting"
    shows_measurement = True

    mask: str | os.PathLike[str] | Image.Image | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("share", self.share)
        if not (self.mask is None or isinstance(self.mask, str | os.PathLike | Image.Image)):
            kinds = f"an image, a Pillow image, or {', '.join(MASKS)}"
            raise UserError(f"is of type {type(self.mask).__name__}", f"give {kinds}", field="mask")
        if self.share is not None and self.mask != "random":
            raise UserError("`share` is for the `mask` random, which leaves so many pixels known", "leave it out")

    def read(self, context: EditContext, image: ImageInput, number: int) -> Given:
        picture = context.read(image, context.model.shape, alpha=self.mask is None)
        mask = self._known(context, picture, image)
        original = self.original(picture)
        return self.measured(context, image, picture, shared_mask(context, mask), mask=mask, original=original)

    def operator(self, context: EditContext, picture: Picture, image: ImageInput) -> Operator:
        return shared_mask(context, self._known(context, picture, image))

    def _known(self, context: EditContext, picture: Picture, image: ImageInput) -> Bool[Tensor, "H W"]:
        """True where a pixel is known."""
        where, size, named = picture.frame, (picture.pixels.shape[1], picture.pixels.shape[2]), self.mask
        if named is None:
            if picture.known is None:
                raise UserError(f"{picture.name} has no transparent part", "mark with `mask` what is to be painted")
            known = picture.known
        elif named == "random":
            known = random(size, _SHARE if self.share is None else self.share, context.generator())
        elif isinstance(named, str) and (words := _by_words(named, size)) is not None:
            known = words
        else:
            source = named if isinstance(named, Image.Image) else self._mask_file(context, named, image)
            known = read_mask(source, where)
        known = known & inside(where)
        given = "`mask`" if isinstance(named, Image.Image) else f"`mask` {named}"
        check_mask(known, where, f"the mask of {picture.name}" if named is None else given)
        return known

    def _mask_file(self, context: EditContext, named: str | os.PathLike[str], image: ImageInput) -> Path:
        path = user_path(named)
        if not path.is_dir():
            if not path.exists():
                raise UserError(
                    f"{shown(named)}: there is no such file", f"give an image, or {', '.join(MASKS)}", field="mask"
                )
            return path
        masks = context.shared(
            ("masks", str(path)), lambda: {one.name: Path(str(one.source)) for one in list_images([path], "mask")}
        )
        if image.name not in masks:
            raise UserError(
                f"{shown(named)} has no mask called {shown(image.name)}", "add one, of any image format", field="mask"
            )
        return masks[image.name]


def _by_words(named: str, size: tuple[int, int]) -> Bool[Tensor, "H W"] | None:
    """The mask of a word; None where it is none."""
    if named in _HALVES:
        return _HALVES[named](size)
    if named == "centre":
        return centre(size)
    if named.startswith("box:"):
        place = whole_numbers("mask", named.removeprefix("box:"))
        try:
            return box(size, place)
        except UserError as error:
            where = "give TOP,LEFT,HEIGHT,WIDTH within them"
            raise UserError(f"{named}: {error.problem}", where, field="mask") from None
    return None


def shared_mask(context: EditContext, known: Bool[Tensor, "H W"], name: str = "inpainting") -> Inpainting:
    """Returns the operator of a mask; images of the same mask share it."""
    key = (name, known.numpy().tobytes(), tuple(known.shape))
    return context.shared(key, lambda: Inpainting(known, name=name))


def inside(where: Frame) -> Bool[Tensor, "H W"]:
    """Returns a mask that is True where the image is in its frame, and False in the margin."""
    known = torch.zeros(where.target[1], where.target[0], dtype=torch.bool)
    left_, top, right_, bottom = where.inside
    known[top:bottom, left_:right_] = True
    return known


def whole_numbers(field: str, text: str) -> tuple[int, int, int, int]:
    """Returns the four whole numbers of a text.

    Args:
        field: name of the option, for messages.
        text: numbers separated by commas, each 0 or more.

    Raises:
        UserError: they are not four, or not whole.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != 4 or min(found) < 0:
        raise UserError(f"{text}: expected 4 whole numbers separated by commas", field=field)
    a, b, c, d = found
    return a, b, c, d
