"""Colorization: the brightness of the image stays, its colours are made."""

from dataclasses import dataclass

from unistep.editing.levels import DefaultLevels
from unistep.editing.model import EditModel
from unistep.editing.operators.colorization import Colorization
from unistep.editing.operators.operator import Operator
from unistep.editing.tasks.measurement import DegradableTask
from unistep.editing.tasks.task import EditContext, Given, Shape
from unistep.errors import UserError
from unistep.images.read import ImageInput, Picture


@dataclass(frozen=True, kw_only=True)
class Colorize(DegradableTask):
    """Colours a grey image; the luma of a coloured one stays."""

    default = DefaultLevels(20.0, 0.2, steps=9, settle=3)
    operator_name = "colorization"

    def input_shape(self, model: EditModel) -> Shape:
        if model.shape[0] != 3:
            channels = f"{model.shape[0]} channel{'s' * (model.shape[0] > 1)}"
            raise UserError(f"colorize needs a model of colour images; this one has {channels}")
        return model.shape

    def operator(self, context: EditContext, picture: Picture, image: ImageInput) -> Operator:
        return context.shared("colorize", Colorization)

    def read(self, context: EditContext, image: ImageInput, number: int) -> Given:
        picture = context.read(image, self.input_shape(context.model))
        operator, original = self.operator(context, picture, image), self.original(picture)
        return self.measured(context, image, picture, operator, original=original, shows_y=True)
