"""Denoising: the image enters the model at the level of its own noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unistep.core.pixels import to_float, to_uint8
from unistep.editing.levels import DefaultLevels, first_level
from unistep.editing.methods.denoise import DenoisingEdit
from unistep.editing.noise_level import estimate_noise
from unistep.editing.tasks.task import EditContext, Given, ImageTask, check_between, note_of, size_of
from unistep.errors import UserError
from unistep.images.read import ImageInput

_DEGRADED = 0.5  # noise level of `degrade` where none is given


@dataclass(frozen=True, kw_only=True)
class Denoise(ImageTask):
    """Removes Gaussian noise.

    Args:
        sigma: noise level of the input, in units of [-1, 1]; default: estimated.
        degrade: whether the inputs are whole images, to which noise is added first.
    """

    default = DefaultLevels(steps=1)

    sigma: float | None = None
    degrade: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between("sigma", self.sigma)
        if self.timesteps is not None or self.sigmas is not None:
            raise UserError(
                "denoise begins at the noise of its input", "give `steps` instead of `timesteps` or `sigmas`"
            )

    def read(self, context: EditContext, image: ImageInput, number: int) -> Given:
        picture, sigma = context.read(image, context.model.shape), first_level(context.model.info, self.sigma)
        pixels, x, note = picture.pixels, context.values(picture.pixels), note_of(picture)
        if self.degrade:
            sigma = sigma or _DEGRADED
            x = x + sigma * context.noise(number, size_of(pixels)).to(x)
            pixels = to_uint8(x)[0].cpu()
        elif sigma is None:
            left, upper, right, lower = picture.frame.inside
            sigma = float(estimate_noise(to_float(pixels)[None, :, upper:lower, left:right]))
            note = noted(note, picture.name, f"its noise is estimated at sigma {sigma:.3g}")
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

    def method(self, context: EditContext, given: Sequence[Given]) -> DenoisingEdit:
        return denoising(self, context, given, clipped=not self.degrade)


def denoising(task: ImageTask, context: EditContext, given: Sequence[Given], *, clipped: bool = False) -> DenoisingEdit:
    """Returns the method that removes noise of the inputs' levels.

    Args:
        task: task, whose `steps` and `candidates` count.
        context: model.
        given: inputs.
        clipped: whether their noise was clipped to [-1, 1], as in files.

    Raises:
        UserError: several candidates of an edit that draws nothing.
    """
    info, steps = context.model.info, task.steps or task.default.steps
    if steps == 1 and task.candidates > 1 and not clipped:
        raise UserError(f"{task.candidates}: one step draws nothing", "give `steps=2` or more", field="candidates")
    x = torch.cat([one.y for one in given])
    sigmas = torch.tensor([min(one.sigma, info.sigma_max) for one in given])
    return DenoisingEdit(x, sigmas, steps, info.sigma_min, info.sigma_max, info.rho, clipped=clipped)


def noted(note: str, name: str, found: str) -> str:
    """Returns a note about an input with one more remark."""
    return f"{note}; {found}" if note else f"{name}: {found}"
