"""Tasks that keep what an operator measures of the image, and make the rest."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from unistep.checks import check_range
from unistep.core.pixels import to_uint8
from unistep.editing.levels import DefaultLevels
from unistep.editing.methods.measurement import MeasurementEdit
from unistep.editing.methods.settle import settle_levels
from unistep.editing.model import EditModel
from unistep.editing.operators.operator import EXACT, ROUNDED, Operator
from unistep.editing.tasks.task import MOST_STEPS, EditContext, Given, ImageTask, Shape, note_of, size_of
from unistep.images.read import ImageInput, Picture, frame


@dataclass(frozen=True, kw_only=True)
class MeasurementTask(ImageTask):
    """A task that keeps what an operator measures of the image, and makes the rest.

    Args:
        settle: number of evaluations without noise after the levels; default: the task's own, and 0 after `timesteps`
            and `sigmas`.
    """

    operator_name: ClassVar[str]
    """Beginning of the names of the task's operators."""

    settle: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("settle", self.settle, 0, MOST_STEPS)

    @abstractmethod
    def operator(self, context: EditContext, picture: Picture, image: ImageInput) -> Operator:
        """Returns the operator for a picture of the `input_shape`.

        Args:
            context: model and options of the edit.
            picture: image in the model's form.
            image: image as it was given.

        Raises:
            UserError: there is none for the model, or for this picture.
        """

    def operator_of_any(self, context: EditContext) -> Operator:
        """Returns the operator for whole images of the model's size, without reading one.

        Raises:
            UserError: there is none for the model, or it depends on the image.
        """
        shape = self.input_shape(context.model)
        size = (shape[2], shape[1])
        picture = Picture(torch.zeros(shape, dtype=torch.uint8), None, frame(size, size, "crop"), "images")
        return self.operator(context, picture, ImageInput(Path("images"), "images"))

    def input_shape(self, model: EditModel) -> Shape:
        """Returns the shape at which inputs are read.

        Raises:
            UserError: an option that does not fit the model.
        """
        return model.shape

    @property
    def tolerance(self) -> float:
        """Largest distance of a result from its measurement; that of a file is rounded."""
        return ROUNDED

    @property
    def usual(self) -> DefaultLevels:
        """Noise levels where none are given."""
        return self.default

    def read(self, context: EditContext, image: ImageInput, number: int) -> Given:
        picture = context.read(image, self.input_shape(context.model))
        return self.measured(context, image, picture, self.operator(context, picture, image))

    def measured(
        self,
        context: EditContext,
        image: ImageInput,
        picture: Picture,
        operator: Operator,
        *,
        mask: Bool[Tensor, "_ _"] | None = None,
        original: UInt8[Tensor, "_ _ _"] | None = None,
        shows_y: bool = False,
    ) -> Given:
        """Returns the input of an edit: the measurement of a whole picture.

        Args:
            context: model and options of the edit.
            image: image as it was given.
            picture: image in the model's form, which is measured.
            operator: operator of the measurement.
            mask: mask of the known pixels.
            original: image to compare with.
            shows_y: whether `before` is the measurement, as a grey image; default: the picture.
        """
        y = operator.A(context.values(picture.pixels))
        return Given(
            name=image.name,
            note=note_of(picture),
            before=to_uint8(y)[0].cpu() if shows_y else picture.pixels,
            y=y,
            size=size_of(picture.pixels),
            inside=picture.frame.inside,
            operator=operator,
            mask=mask,
            original=original,
        )

    def method(self, context: EditContext, given: Sequence[Given]) -> MeasurementEdit:
        info, levels = context.model.info, self.given_levels(context)
        count = (0 if levels else self.usual.settle) if self.settle is None else self.settle
        operators = [one.operator for one in given if one.operator is not None]
        return MeasurementEdit(
            operators,
            [one.y for one in given],
            levels or self.usual.at(self.steps, rho=info.rho),
            info.sigma_min,
            self.tolerance,
            settle_levels(count, most=info.sigma_max, rho=info.rho),
        )


@dataclass(frozen=True, kw_only=True)
class DegradableTask(MeasurementTask):
    """A measurement task that can also measure whole images itself, to try it out.

    Args:
        degrade: whether the inputs are whole images, which are measured first and compared with the results.
    """

    degrade: bool = False

    @property
    def tolerance(self) -> float:
        return EXACT if self.degrade else ROUNDED

    def original(self, picture: Picture) -> UInt8[Tensor, "_ _ _"] | None:
        """Returns the picture that results are compared with; None where the input is no whole image."""
        return picture.pixels if self.degrade else None
