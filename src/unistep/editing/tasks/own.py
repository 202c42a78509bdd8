"""Edits by an operator that is given, in place of a task by its name."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from unistep.core.pixels import to_float, to_uint8
from unistep.editing.levels import DefaultLevels
from unistep.editing.operators.operator import EXACT, ROUNDED, Operator
from unistep.editing.tasks import task_of
from unistep.editing.tasks.measurement import MeasurementTask
from unistep.editing.tasks.task import EditContext, Given, note_of, size_of
from unistep.errors import UserError
from unistep.images.read import ImageInput, Picture


@dataclass(frozen=True, kw_only=True)
class OperatorTask(MeasurementTask):
    """Edits from the measurements of given operators, at the levels of the first operator's task.

    Args:
        operators: one operator for all images, or one an image.
        measurement: measurements [N, ...], in place of images: floats, those of images in [-1, 1], or uint8, which
            were rounded; default: those of the images.
    """

    operator_name = ""
    shows_measurement = True

    operators: Sequence[Operator]
    measurement: Shaped[Tensor, "N *M"] | None = None

    @property
    def tolerance(self) -> float:
        return ROUNDED if self.measurement is not None and self.measurement.dtype == torch.uint8 else EXACT

    @property
    def usual(self) -> DefaultLevels:
        return task_of(self.operators[0].name).default

    def names(self, images: Sequence[ImageInput]) -> list[str]:
        return (
            [f"{i:06d}" for i in range(len(self.measurement))]
            if self.measurement is not None
            else super().names(images)
        )

    def check_inputs(self, count: int) -> None:
        if bool(count) == (self.measurement is not None):
            raise UserError("give an `image` to measure, or a `measurement`: one of them")
        y = self.measurement
        if y is not None and not (y.is_floating_point() or y.dtype == torch.uint8):
            raise UserError(f"is {str(y.dtype).removeprefix('torch.')}", "give floats or uint8", field="measurement")
        if y is not None and not bool(y.isfinite().all()):
            raise UserError("has values that are not finite (NaN or inf)", "give finite ones", field="measurement")

    def operator(self, context: EditContext, picture: Picture, image: ImageInput) -> Operator:
        return self.operators[0]

    def read_all(self, context: EditContext, images: Sequence[ImageInput]) -> list[Given]:
        count = len(images) if self.measurement is None else len(self.measurement)
        operators = list(self.operators) * (count if len(self.operators) == 1 else 1)
        if len(operators) != count:
            raise UserError(f"{len(operators)} operators are given for {count} images", "give one, or one an image")
        if self.measurement is None:
            pairs = zip(images, operators, strict=True)
            return [self._measured(context, image, operator) for image, operator in pairs]
        y = to_float(self.measurement) if self.measurement.dtype == torch.uint8 else self.measurement
        parts = y.to(context.model.device, torch.float32).split(1)
        pairs = zip(parts, operators, strict=True)
        return [self._of_measurement(i, part, operator) for i, (part, operator) in enumerate(pairs)]

    def _measured(self, context: EditContext, image: ImageInput, operator: Operator) -> Given:
        """An input that is measured; pixels keep their size."""
        if isinstance(image.source, Tensor):
            pixels, note = image.source.cpu(), ""
            inside = (0, 0, pixels.shape[2], pixels.shape[1])
        else:
            picture = context.read(image, context.model.shape)
            pixels, note, inside = picture.pixels, note_of(picture), picture.frame.inside
        return Given(
            name=image.name,
            note=note,
            before=pixels,
            y=operator.A(context.values(pixels)),
            size=size_of(pixels),
            inside=inside,
            operator=operator,
            mask=_mask_of(operator),
            original=pixels,
        )

    def _of_measurement(self, number: int, part: Tensor, operator: Operator) -> Given:
        """An input of which there is the measurement alone."""
        # Of what no image measures as, the nearest that one does.
        known = operator.A_pinv(part)
        size, y = size_of(known), operator.A(known)
        inside = (0, 0, size[2], size[1])
        before = to_uint8(known)[0].cpu()
        return Given(f"{number:06d}", "", before, y, size, inside, operator, mask=_mask_of(operator))


def _mask_of(operator: Operator) -> Tensor | None:
    """The mask of an operator that has one for all channels."""
    mask = getattr(operator, "mask", None)
    return mask[0].cpu() if isinstance(mask, Tensor) and mask.ndim == 3 and len(mask) == 1 else None
