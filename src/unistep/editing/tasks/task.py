"""Base classes of tasks, the context of one call, and inputs that are read and ready.

A task is a frozen dataclass whose fields are its options. `ImageTask` edits images, each by itself; its families are
`MeasurementTask`, which keeps what an operator measures, and the tasks that begin with the image and noise. Tasks that
go from image to image through noise are in `unistep.editing.tasks.paths`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from unistep.checks import check_one_of, check_range
from unistep.core.pixels import to_float
from unistep.core.random import BASIS, DEGRADE, ImageRandom, image_seed
from unistep.editing.levels import DefaultLevels, given_levels
from unistep.editing.methods.protocol import Method
from unistep.editing.model import EditModel
from unistep.editing.operators.operator import Operator
from unistep.editing.result import EditedImage, EditResult
from unistep.editing.run import MOST_CANDIDATES, Candidates, check_classes, make
from unistep.errors import UserError
from unistep.images.frame import Fit, cut_margin
from unistep.images.read import ImageInput, Picture, read_picture

Shape = tuple[int, int, int]
Shared = TypeVar("Shared")
ImageProgress = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Given a number of images, a context in which a function is called with how many are done."""

_log = logging.getLogger("unistep")

MOST_STEPS = 10_000
_CHUNK = 256  # inputs whose results are computed in one call
_MOST_NOTES = 5


def no_progress(total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Shows nothing."""
    return nullcontext(lambda done: None)


def check_between(field: str, value: float | None, most: float = 1000.0) -> None:
    """Refuses a number that is not above 0 and below `most`; None passes.

    Raises:
        UserError: the number is outside of the range.
    """
    if value is not None and not 0 < value < most:
        raise UserError(f"{value:g} must lie above 0 and below {most:g}", field=field)


def check_share(field: str, value: float | None) -> None:
    """Refuses a share that is not in (0, 1]; None passes.

    Raises:
        UserError: the share is outside of the range.
    """
    if value is not None and not 0 < value <= 1:
        raise UserError(f"{value:g} must lie above 0 and not above 1", field=field)


@dataclass(frozen=True)
class EditContext:
    """The model and the choices that all images of a call share.

    Args:
        model: consistency model.
        seed: seed of the run; image i uses the stream (seed, i).
        seeds: one seed an image in place of `seed`.
        class_labels: one class for all images, or one an image; None guesses or draws them.
        fit: way to fit images of other sizes, see `unistep.images.frame`.
        batch_size: results at once on an accelerator.
        advice: note for images that are not of the model's kind: larger, or coloured where it makes grey ones.
    """

    model: EditModel
    seed: int = 0
    seeds: Sequence[int] | None = None
    class_labels: int | Sequence[int] | None = None
    fit: Fit = "crop"
    batch_size: int = 64
    advice: str = ""
    _shared: dict[object, object] = field(default_factory=dict, repr=False, compare=False)

    def read(self, image: ImageInput, shape: Shape, *, alpha: bool = False) -> Picture:
        """Reads an image at the size of `shape` (channels, height, width).

        Raises:
            UserError: it cannot be read.
        """
        picture = read_picture(image.source, shape, self.fit, alpha=alpha, name=image.label, grey_bits=image.grey_bits)
        width, height = picture.frame.source
        larger = picture.frame.resized and width * height > self.model.shape[1] * self.model.shape[2]
        if larger:
            self._shared["larger"] = True
        if larger or picture.lost_colour:
            self._shared["other"] = True
        return picture

    def log_advice(self) -> None:
        """Logs what to do where images that were read are not of the model's kind."""
        if "other" in self._shared and self.advice:
            _log.info("%s", self.advice)
        if "larger" in self._shared and self.fit != "tiles":
            _, side, _ = self.model.shape
            _log.info('the model makes images of %dx%d; `fit="tiles"` keeps the size of larger ones', side, side)

    def values(self, pixels: UInt8[Tensor, "C H W"]) -> Float32[Tensor, "1 C H W"]:
        """Returns pixels as values in [-1, 1] on the model's device."""
        return to_float(pixels)[None].to(self.model.device)

    def shared(self, key: object, make: Callable[[], Shared]) -> Shared:
        """Returns what is kept under `key`, made by the first call; images of one operator share batches."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]  # pyright: ignore[reportReturnType]

    def generator(self) -> torch.Generator:
        """Returns the generator of random masks and bases."""
        return torch.Generator().manual_seed(image_seed(self.seed, 0, BASIS))

    def noise(self, number: int, shape: Shape) -> Float[Tensor, "1 C H W"]:
        """Returns the unit noise with which input `number` is degraded."""
        own = (self.seed, number) if self.seeds is None else (self.seeds[number], 0)
        return ImageRandom([image_seed(*own, DEGRADE)]).randn(*shape)


@dataclass(frozen=True)
class Given:
    """One input, read and ready.

    Args:
        name: name of the result.
        note: description of the changes that brought the image to the model's form; empty for none.
        before: pixels that were given, for the sheet.
        y: measurement [1, ...], or the image [1, C, H, W] with the noise that it has.
        size: channels, height and width of the result, margins included.
        inside: left, upper, right, lower of the result without margins.
        operator: operator that measured y; None for tasks without one.
        sigma: noise level of y, for denoising.
        mask: True where a pixel is known; None where pixels are not known one by one.
        original: image that the result is to be compared with; None where there is none.
    """

    name: str
    note: str
    before: UInt8[Tensor, "_ _ _"]
    y: Float[Tensor, "1 *M"]
    size: Shape
    inside: tuple[int, int, int, int]
    operator: Operator | None = None
    sigma: float = 0.0
    mask: Bool[Tensor, "_ _"] | None = None
    original: UInt8[Tensor, "_ _ _"] | None = None


def size_of(pixels: Tensor) -> Shape:
    """Returns channels, height and width."""
    channels, height, width = pixels.shape[-3:]
    return channels, height, width


def note_of(picture: Picture) -> str:
    """Returns the note of a picture, with its name and size; empty where nothing was done to it."""
    width, height = picture.frame.source
    return f"{picture.name} is {width}x{height}: {picture.note}" if picture.note else ""


@dataclass(frozen=True, kw_only=True)
class EditTask(ABC):
    """A task with its options.

    Args:
        steps: number of noise levels; default: the task's own.
        timesteps: indices of the model's noise grid, rising; in place of `steps`.
        sigmas: noise levels, descending; in place of `steps`.
    """

    default: ClassVar[DefaultLevels]
    shows_measurement: ClassVar[bool] = False  # whether it differs from the picture that was given

    steps: int | None = None
    timesteps: Sequence[int] | None = None
    sigmas: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1, MOST_STEPS)
        check_one_of(steps=self.steps, timesteps=self.timesteps, sigmas=self.sigmas)

    @abstractmethod
    def run(
        self,
        context: EditContext,
        images: Sequence[ImageInput],
        *,
        progress: ImageProgress = no_progress,
        on_image: Callable[[int, EditedImage], None] | None = None,
    ) -> EditResult:
        """Edits images.

        Args:
            context: model and common choices.
            images: inputs.
            progress: shows how many results are done.
            on_image: called with number and result of every input as soon as it is done.

        Raises:
            UserError: an input or an option that does not fit the model.
        """

    @abstractmethod
    def check_inputs(self, count: int) -> None:
        """Refuses a number of inputs, before any is read.

        Raises:
            UserError: there are too few, or the task takes none.
        """

    def given_levels(self, context: EditContext) -> list[float] | None:
        """Returns the noise levels of `timesteps` or `sigmas`; None where neither is given.

        Raises:
            UserError: they are no levels of the model.
        """
        return given_levels(context.model.info, self.timesteps, self.sigmas)


@dataclass(frozen=True, kw_only=True)
class ImageTask(EditTask):
    """A task that edits images, each by itself.

    Args:
        candidates: results an image, best first.
    """

    candidates: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("candidates", self.candidates, 1, MOST_CANDIDATES)

    def names(self, images: Sequence[ImageInput]) -> list[str]:
        """Returns the names of the results."""
        return [image.name for image in images]

    def check_inputs(self, count: int) -> None:
        if not count:
            raise UserError("is missing", "give an image or a folder of images", field="image")

    @abstractmethod
    def read(self, context: EditContext, image: ImageInput, number: int) -> Given:
        """Reads input `number`.

        Raises:
            UserError: it cannot be read, or does not fit.
        """

    @abstractmethod
    def method(self, context: EditContext, given: Sequence[Given]) -> Method:
        """Returns the method for inputs of one size."""

    def read_all(self, context: EditContext, images: Sequence[ImageInput]) -> list[Given]:
        """Reads all inputs."""
        return [self.read(context, image, number) for number, image in enumerate(images)]

    def run(
        self,
        context: EditContext,
        images: Sequence[ImageInput],
        *,
        progress: ImageProgress = no_progress,
        on_image: Callable[[int, EditedImage], None] | None = None,
    ) -> EditResult:
        self.given_levels(context)  # refuses levels before anything is read and said
        given = self.read_all(context, images)
        count, labels, seeds = len(given), context.class_labels, context.seeds
        classes = None if labels is None else check_classes(labels, context.model.num_classes, count)
        if seeds is not None and len(seeds) != count:
            raise UserError(f"{len(seeds)} `seeds` are given for {count} images", "give one an image")
        _log_notes([one.note for one in given])
        context.log_advice()
        parts, inputs = list(_parts(given)), dict(enumerate(given))
        del given
        done: dict[int, EditedImage] = {}
        evaluations, guesses = 0, 0
        with progress(count * self.candidates) as on_done:
            for part in parts:
                before = len(done) * self.candidates
                made = make(
                    context.model,
                    self.method(context, [inputs[i] for i in part]),
                    seeds=context.seed if seeds is None else [seeds[i] for i in part],
                    class_labels=None if classes is None else [classes[i] for i in part],
                    candidates=self.candidates,
                    batch_size=context.batch_size,
                    numbers=part,
                    on_done=lambda n, before=before: on_done(before + n),
                )
                evaluations, guesses = made.evaluations, made.guesses
                for row, i in enumerate(part):
                    done[i] = _edited(inputs.pop(i), made, row)
                    if on_image:
                        on_image(i, done[i])
        return EditResult(tuple(done[i] for i in range(count)), evaluations, guesses, self.shows_measurement)


def _parts(given: Sequence[Given]) -> Iterator[list[int]]:
    """Numbers of inputs that are computed in one call: of one size, and not too many."""
    by_size: dict[object, list[int]] = {}
    for i, one in enumerate(given):
        by_size.setdefault(one.size, []).append(i)
    for numbers in by_size.values():
        for start in range(0, len(numbers), _CHUNK):
            yield numbers[start : start + _CHUNK]


def _edited(given: Given, made: Candidates, row: int) -> EditedImage:
    """The result of an input, without margins."""
    inside, before = given.inside, given.before
    return EditedImage(
        name=given.name,
        candidates=cut_margin(made.images[row], inside).clone(),
        residual=made.residual[row],
        class_labels=None if made.class_labels is None else made.class_labels[row],
        before=cut_margin(before, inside) if before.shape[1:] == given.size[1:] else before,
        measurement=cut_margin(made.measurement[row], inside).clone(),
        mask=None if given.mask is None else cut_margin(given.mask, inside),
        original=None if given.original is None else cut_margin(given.original, inside),
    )


def _log_notes(notes: Sequence[str]) -> None:
    notes = [note for note in notes if note]
    for note in notes[:_MOST_NOTES]:
        _log.info("%s", note)
    if len(notes) > _MOST_NOTES:
        _log.info("and so on for %d more", len(notes) - _MOST_NOTES)
