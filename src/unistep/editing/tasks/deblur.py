"""Deblurring: the frequencies that a Gaussian blur has left stay, the others are made."""

from dataclasses import dataclass

from unistep.editing.levels import DefaultLevels
from unistep.editing.operators.deblurring import GaussianBlur
from unistep.editing.operators.operator import Operator
from unistep.editing.tasks.measurement import DegradableTask
from unistep.editing.tasks.task import EditContext, Given, check_between, note_of, size_of
from unistep.errors import UserError
from unistep.images.read import ImageInput, Picture


@dataclass(frozen=True, kw_only=True)
class Deblur(DegradableTask):
    """Undoes a Gaussian blur.

    Args:
        blur: standard deviation of the blur, in pixels of the model.
    """

    default = DefaultLevels(2.0, 0.05, steps=2, settle=4)
    operator_name = "deblurring"
    shows_measurement = True

    blur: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blur is None:
            raise UserError("is missing", "give the blur's standard deviation in pixels, as 1.5", field="blur")
        check_between("blur", self.blur)

    def operator(self, context: EditContext, picture: Picture, image: ImageInput) -> Operator:
        return context.shared("deblur", lambda: GaussianBlur(self.blur or 0.0))

    def read(self, context: EditContext, image: ImageInput, number: int) -> Given:
        picture = context.read(image, context.model.shape)
        operator = self.operator(context, picture, image)
        if self.degrade:
            original = self.original(picture)
            return self.measured(context, image, picture, operator, original=original, shows_y=True)
        pixels = picture.pixels
        y = operator.A(operator.A_pinv(context.values(pixels)))  # the nearest that an image can be blurred to
        inside = picture.frame.inside
        return Given(image.name, note_of(picture), pixels, y, size_of(pixels), inside, operator)
