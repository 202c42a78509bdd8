"""Strokes and variations: noise of some level is added to the image, and removed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unistep.editing.levels import DefaultLevels, check_first_level, first_level
from unistep.editing.methods.sdedit import NoisedEdit
from unistep.editing.tasks.task import EditContext, Given, ImageTask, check_between, note_of, size_of
from unistep.images.read import ImageInput


@dataclass(frozen=True, kw_only=True)
class SDEditTask(ImageTask):
    """A task that adds noise to the image and removes it.

    Args:
        sigma: level of the noise, in units of [-1, 1], which decides how far the result may go from the input.
        strength: noise level as a share of the noise grid, from 0 (sigma_min) to 1 (sigma_max); in place of `sigma`.
    """

    sigma: float | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between("sigma", self.sigma)
        check_first_level(self.sigma, self.strength, self.timesteps or self.sigmas)

    def read(self, context: EditContext, image: ImageInput, number: int) -> Given:
        first_level(context.model.info, self.sigma, self.strength)
        picture = context.read(image, context.model.shape)
        x = context.values(picture.pixels)
        return Given(image.name, note_of(picture), picture.pixels, x, size_of(x), picture.frame.inside)

    def method(self, context: EditContext, given: Sequence[Given]) -> NoisedEdit:
        info = context.model.info
        first = first_level(info, self.sigma, self.strength)
        levels = self.given_levels(context) or self.default.at(self.steps, first=first, rho=info.rho)
        return NoisedEdit(torch.cat([one.y for one in given]), levels, info.sigma_min)


class Strokes(SDEditTask):
    """Makes an image from a crude picture."""

    default = DefaultLevels(1.5, steps=3)


class Vary(SDEditTask):
    """Makes variations of an image."""

    default = DefaultLevels(5.0, steps=2)
