"""Compressed sensing: some coefficients of the image in a random basis stay, the others are made."""

from dataclasses import dataclass

from unistep.editing.levels import DefaultLevels
from unistep.editing.operators import compressed_sensing
from unistep.editing.operators.operator import Operator
from unistep.editing.tasks.measurement import DegradableTask
from unistep.editing.tasks.task import EditContext, Given, check_share, size_of
from unistep.images.read import ImageInput, Picture


@dataclass(frozen=True, kw_only=True)
class CompressedSensing(DegradableTask):
    """Makes an image from few random numbers about it.

    Args:
        share: share of the coefficients that are known.
    """

    default = DefaultLevels(2.0, 0.05, steps=12, settle=12)
    operator_name = "compressed sensing"
    shows_measurement = True

    share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("share", self.share)

    def operator(self, context: EditContext, picture: Picture, image: ImageInput) -> Operator:
        shape = size_of(picture.pixels)
        return context.shared(
            shape, lambda: compressed_sensing.CompressedSensing(shape, self.share, context.generator())
        )

    def read(self, context: EditContext, image: ImageInput, number: int) -> Given:
        picture = context.read(image, context.model.shape)
        # The input is a whole image in any case.
        return self.measured(context, image, picture, self.operator(context, picture, image), original=picture.pixels)
