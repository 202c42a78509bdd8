"""JPEG: its artefacts are removed as noise of a level that is estimated from the file's quantization table."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from unistep.checks import check_range, user_path
from unistep.core.pixels import to_float
from unistep.data.prepare import decode, to_pixels
from unistep.editing.jpeg_level import jpeg_level
from unistep.editing.levels import DefaultLevels, check_first_level, first_level
from unistep.editing.methods.denoise import DenoisingEdit
from unistep.editing.methods.sdedit import NoisedEdit
from unistep.editing.tasks.denoise import denoising, noted
from unistep.editing.tasks.task import EditContext, Given, ImageTask, check_between, note_of, size_of
from unistep.errors import UserError
from unistep.images.grid import to_pil
from unistep.images.read import ImageInput, Picture

_LEVELS_OF_ERROR = 3.0  # noise level at which an error of JPEG is removed best, in units of the error; see `jpeg_level`
_QUALITY = 15  # of the compression where none is given
_LEAST = 12  # pixels of the sides that the estimate takes


@dataclass(frozen=True, kw_only=True)
class Jpeg(ImageTask):
    """Removes the artefacts of JPEG.

    Args:
        sigma: noise level that the artefacts are taken for; default: estimated from a JPEG file.
        strength: noise level as a share of the noise grid, from 0 (sigma_min) to 1 (sigma_max); in place of `sigma`.
        quality: quality of the compression of `degrade`, from 1 to 100; default: 15.
        degrade: whether the inputs are whole images, which are compressed first.
    """

    default = DefaultLevels(0.3, 0.1, steps=1)

    sigma: float | None = None
    strength: float | None = None
    quality: int | None = None
    degrade: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between("sigma", self.sigma)
        check_range("quality", self.quality, 1, 100)
        if self.quality is not None and not self.degrade:
            raise UserError("`quality` is that of the compression by `degrade`", "give both, or leave it out")
        check_first_level(self.sigma, self.strength, self.timesteps or self.sigmas)

    def read(self, context: EditContext, image: ImageInput, number: int) -> Given:
        picture = context.read(image, context.model.shape)
        sigma = first_level(context.model.info, self.sigma, self.strength)
        pixels, note = picture.pixels, note_of(picture)
        if self.degrade:
            content = _compressed(picture, _QUALITY if self.quality is None else self.quality)
            pixels = _pixels(content, len(pixels))
        if sigma is None:
            # Resampled artefacts are no longer those of the table.
            whole = self.degrade or not picture.frame.resized
            found = _estimate(content if self.degrade else _content(image), len(pixels)) if whole else None
            sigma = self.default.sigma_first if found is None else found
            if found is not None:
                note = noted(note, picture.name, f"its artefacts are taken for noise of sigma {sigma:.3g}")
        x = context.values(pixels)
        return Given(
            name=image.name,
            note=note,
            before=pixels,
            y=x,
            size=size_of(x),
            inside=picture.frame.inside,
            sigma=sigma,
            original=picture.pixels if self.degrade else None,
        )

    def method(self, context: EditContext, given: Sequence[Given]) -> DenoisingEdit | NoisedEdit:
        levels = self.given_levels(context)
        if levels is None:
            return denoising(self, context, given)
        return NoisedEdit(torch.cat([one.y for one in given]), levels, context.model.info.sigma_min)


def _compressed(picture: Picture, quality: int) -> bytes:
    file = io.BytesIO()
    to_pil(picture.pixels).save(file, format="JPEG", quality=quality)
    return file.getvalue()


def _content(image: ImageInput) -> bytes | None:
    """The bytes of an image's file; None where there is none."""
    if isinstance(image.source, Image.Image | Tensor):
        return None
    return user_path(image.source).read_bytes()


def _pixels(content: bytes, channels: int) -> UInt8[Tensor, "C H W"]:
    return torch.from_numpy(to_pixels(decode(content), channels).copy())


def _estimate(content: bytes | None, channels: int) -> float | None:
    """Returns the noise level of a file's artefacts; None where it is no JPEG, or too small."""
    if content is None:
        return None
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            table = torch.tensor(image.quantization[0]).view(8, 8)  # pyright: ignore[reportAttributeAccessIssue]
            if min(image.size) < _LEAST:
                return None
    except (OSError, KeyError, RuntimeError):
        return None
    return _LEVELS_OF_ERROR * float(jpeg_level(to_float(_pixels(content, channels))[None], table))
