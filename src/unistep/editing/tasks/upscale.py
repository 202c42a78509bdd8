"""Super-resolution: the mean of every patch stays, the pixels in it are made."""

from collections.abc import Sequence
from dataclasses import dataclass

from unistep.editing.levels import DefaultLevels
from unistep.editing.model import EditModel
from unistep.editing.operators.operator import Operator
from unistep.editing.operators.super_resolution import SuperResolution
from unistep.editing.tasks.measurement import DegradableTask
from unistep.editing.tasks.task import EditContext, Given, Shape, note_of
from unistep.errors import UserError
from unistep.images.read import ImageInput, Picture


@dataclass(frozen=True, kw_only=True)
class Upscale(DegradableTask):
    """Makes an image of more pixels.

    Args:
        factor: ratio of the sides of the result to those of the input, as 4, or 2x4 for height x width.
    """

    default = DefaultLevels(2.0, 0.2, steps=9, settle=3)
    operator_name = "super-resolution"

    factor: int | str | Sequence[int] = 4

    def input_shape(self, model: EditModel) -> Shape:
        (fh, fw), (channels, side, _) = self._factors(model), model.shape
        return model.shape if self.degrade else (channels, side // fh, side // fw)

    def operator(self, context: EditContext, picture: Picture, image: ImageInput) -> Operator:
        return context.shared("upscale", lambda: SuperResolution(self._factors(context.model)))

    def read(self, context: EditContext, image: ImageInput, number: int) -> Given:
        picture = context.read(image, self.input_shape(context.model))
        operator, original = self.operator(context, picture, image), self.original(picture)
        if self.degrade:
            return self.measured(context, image, picture, operator, original=original, shows_y=True)
        fh, fw = self._factors(context.model)
        left, top, right, bottom = picture.frame.inside
        inside = (left * fw, top * fh, right * fw, bottom * fh)
        y = context.values(picture.pixels)
        size = (y.shape[1], y.shape[2] * fh, y.shape[3] * fw)
        return Given(image.name, note_of(picture), picture.pixels, y, size, inside, operator)

    def _factors(self, model: EditModel) -> tuple[int, int]:
        """Of height and of width."""
        side, given = model.shape[1], self.factor
        text = str(given) if isinstance(given, int | str) else "x".join(map(str, given))
        parts = text.lower().split("x")
        if len(parts) > 2 or not all(p.isascii() and p.isdigit() and len(p) < 6 for p in parts):
            raise UserError(
                f"{text or repr('')}: give a whole number, as 4, or two for height x width, as 2x4", field="factor"
            )
        fh, fw = int(parts[0]), int(parts[-1])
        if min(fh, fw) < 1 or fh * fw < 2 or side % fh or side % fw:
            fit = ", ".join(str(n) for n in range(2, side + 1) if side % n == 0)
            raise UserError(
                f"{text}: the model's {side} pixels have no such parts", f"of use are {fit}", field="factor"
            )
        return fh, fw
