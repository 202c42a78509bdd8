"""Outpainting: the image stays, the margin around it is painted."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unistep.editing.levels import DefaultLevels
from unistep.editing.model import EditModel
from unistep.editing.operators.operator import Operator
from unistep.editing.tasks.inpaint import inside, shared_mask, whole_numbers
from unistep.editing.tasks.measurement import MeasurementTask
from unistep.editing.tasks.task import EditContext, Given, Shape, note_of, size_of
from unistep.errors import UserError
from unistep.images.read import ImageInput, Picture


@dataclass(frozen=True, kw_only=True)
class Outpaint(MeasurementTask):
    """Paints around the image.

    Args:
        margin: pixels of the result around the image, one number or left, top, right, bottom; default: a quarter of
            the model's side.
    """

    default = DefaultLevels(5.0, 0.2, steps=9, settle=3)
    operator_name = "outpainting"
    shows_measurement = True

    margin: int | str | Sequence[int] | None = None

    def input_shape(self, model: EditModel) -> Shape:
        (channels, side, _), (left, top, right, bottom) = model.shape, self._margins(model)
        return channels, side - top - bottom, side - left - right

    def operator(self, context: EditContext, picture: Picture, image: ImageInput) -> Operator:
        return shared_mask(context, self._known(context, picture), "outpainting")

    def read(self, context: EditContext, image: ImageInput, number: int) -> Given:
        picture = context.read(image, self.input_shape(context.model))
        known, operator = self._known(context, picture), self.operator(context, picture, image)
        canvas = self._on_canvas(context, picture.pixels)
        whole = (0, 0, known.shape[1], known.shape[0])
        y = operator.A(context.values(canvas))
        return Given(image.name, note_of(picture), picture.pixels, y, size_of(canvas), whole, operator, mask=known)

    def _known(self, context: EditContext, picture: Picture) -> Tensor:
        """True where a pixel of the canvas is known."""
        return self._on_canvas(context, inside(picture.frame)[None])[0]

    def _on_canvas(self, context: EditContext, x: Tensor) -> Tensor:
        """`x` [C, h, w] with zeros in the margin."""
        left, top, right, bottom = self._margins(context.model)
        return torch.nn.functional.pad(x, (left, right, top, bottom))

    def _margins(self, model: EditModel) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        side, given = model.shape[1], self.margin
        if given is None:
            return side // 4, side // 4, side // 4, side // 4
        text = str(given) if isinstance(given, int | str) else ",".join(map(str, given))
        numbers = whole_numbers("margin", text if "," in text else ",".join([text] * 4))
        left, top, right, bottom = numbers
        if left + right >= side or top + bottom >= side or not any(numbers):
            raise UserError(f"{text}: some of the model's {side} pixels must be left, and some painted", field="margin")
        return numbers
