"""Interpolations and walks: from image to image through noise, as the frames of an animation."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unistep.checks import check_range
from unistep.core.finite import Watched
from unistep.core.pixels import to_float
from unistep.core.random import ImageRandom, image_seed
from unistep.editing.encoding import encode
from unistep.editing.interpolation import walk
from unistep.editing.levels import DefaultLevels
from unistep.editing.methods.sdedit import NoisedEdit
from unistep.editing.path import render_path
from unistep.editing.result import EditedImage, EditResult
from unistep.editing.run import check_classes, guess_classes
from unistep.editing.tasks.sdedit import Vary
from unistep.editing.tasks.task import EditContext, EditTask, ImageProgress, check_between, no_progress
from unistep.errors import UserError
from unistep.formats.model import LoadedModel
from unistep.generation.labels import random_labels
from unistep.images.read import ImageInput

_STOPS = 6
_TEACHER_STEPS = 18
_FPS = 12.0
_MOST_FRAMES = 100_000


class Points(NamedTuple):
    """The images between which a path goes, as noise.

    Args:
        x_T: images with noise of level `sigma` [K, C, H, W].
        sigma: noise level.
        classes: class of each [K]; None for a model without classes.
    """

    x_T: Float[Tensor, "K C H W"]
    sigma: float
    classes: Int64[Tensor, " K"] | None


@dataclass(frozen=True, kw_only=True)
class PathTask(EditTask):
    """A task whose result is a path from image to image.

    Args:
        frames: number of frames from one image to the next.
        fps: frames a second of an animation; default: 12.
    """

    default = DefaultLevels(steps=1)

    frames: int = 16
    fps: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("frames", self.frames, 1, 10_000)
        check_between("fps", self.fps)

    @property
    def closed(self) -> bool:
        """Whether the path ends where it begins."""
        return False

    @abstractmethod
    def points(self, context: EditContext, images: Sequence[ImageInput]) -> Points:
        """Returns the images between which the path goes, as noise.

        Raises:
            UserError: inputs, seeds or options that contradict each other or the model.
        """

    def run(
        self,
        context: EditContext,
        images: Sequence[ImageInput],
        *,
        progress: ImageProgress = no_progress,
        on_image: Callable[[int, EditedImage], None] | None = None,
    ) -> EditResult:
        model, count = context.model, self.frames
        points = self.points(context, images)
        legs = len(points.x_T) if self.closed else len(points.x_T) - 1
        if legs * count > _MOST_FRAMES:
            raise UserError(
                f"{count}: {legs * count:,} frames in all are more than {_MOST_FRAMES:,}", "give fewer", field="frames"
            )
        path = walk(points.x_T, count, closed=self.closed)
        levels = self.given_levels(context) or self.default.at(self.steps, first=points.sigma, rho=model.info.rho)
        if abs(levels[0] - points.sigma) > 1e-4 * points.sigma:
            raise UserError(
                f"the noise of the path is {points.sigma:g}, and the levels begin at {levels[0]:g}; "
                "let them begin there"
            )
        labels = points.classes
        if labels is not None:
            labels = labels[[round(i / count) % len(labels) for i in range(len(path))]]
        with progress(len(path)) as on_done:
            frames = render_path(
                model, path, levels, labels, seed=context.seed, batch_size=context.batch_size, on_done=on_done
            )
        columns = count if legs > 1 else min(len(frames), 12)
        return EditResult((), len(levels), frames=frames, fps=self.fps or _FPS, columns=columns)


@dataclass(frozen=True, kw_only=True)
class Walk(PathTask):
    """Goes through the images of several seeds.

    Args:
        stops: number of images between which it goes, where no `seeds` are given; default: 6.
        loop: whether it ends where it begins.
    """

    stops: int | None = None
    loop: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("stops", self.stops, 1, 1000)

    @property
    def closed(self) -> bool:
        return self.loop

    def check_inputs(self, count: int) -> None:
        if count:
            raise UserError("`image` is not for walk, which goes from seed to seed; interpolate goes between images")

    def points(self, context: EditContext, images: Sequence[ImageInput]) -> Points:
        if context.seeds is None:
            return seed_points(context, [image_seed(context.seed, i) for i in range(self.stops or _STOPS)])
        if self.stops is not None:
            raise UserError("`seeds` and `stops` exclude each other", "give one")
        return seed_points(context, context.seeds)


@dataclass(frozen=True, kw_only=True)
class Interpolate(PathTask):
    """Goes from one image to another, or from the image of one seed to that of another.

    Args:
        sigma: level of the noise that is added to images; default: that of variations.
        teacher: opens, on a device, a diffusion model whose ODE turns images into noise; default: noise is added.
    """

    sigma: float | None = None
    teacher: Callable[[torch.device], LoadedModel] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between("sigma", self.sigma)

    def check_inputs(self, count: int) -> None:
        pass

    def points(self, context: EditContext, images: Sequence[ImageInput]) -> Points:
        if images and context.seeds is not None:
            raise UserError("`image` and `seeds` exclude each other", "give one")
        if images:
            return self._image_points(context, images)
        if context.seeds is None:
            raise UserError("interpolate goes between images or seeds", "give `image` A B, or `seeds` as 3,8")
        for name in ("sigma", "teacher"):
            if getattr(self, name) is not None:
                raise UserError(f"`{name}` is for interpolations of `image`", "leave it out")
        return seed_points(context, context.seeds)

    def _image_points(self, context: EditContext, images: Sequence[ImageInput]) -> Points:
        if context.fit == "tiles":
            raise UserError("tiles is not for interpolations", "give crop, resize or pad", field="fit")
        _check_count(len(images))
        model = context.model
        x = to_float(torch.stack([context.read(image, model.shape).pixels for image in images])).to(model.device)
        classes = _given_classes(context, len(x))
        if classes is None and model.num_classes:
            noised = NoisedEdit(x, [model.info.sigma_max], model.info.sigma_min)
            classes = guess_classes(model, noised, seed=context.seed, batch_size=context.batch_size)
        if self.teacher is not None:
            return Points(self._encoded(context, x, classes), model.info.sigma_max, classes)
        sigma = min(self.sigma or Vary.default.sigma_first, model.info.sigma_max)
        noise = ImageRandom([image_seed(context.seed, i) for i in range(len(x))]).randn(*model.shape)
        return Points(x.cpu() + sigma * noise, sigma, classes)

    def _encoded(self, context: EditContext, x: Tensor, classes: Tensor | None) -> Tensor:
        """Images as the noise from which the teacher makes them."""
        assert self.teacher is not None
        if self.sigma is not None:
            raise UserError("`sigma` and `teacher` exclude each other: the noise of the teacher is that of sigma_max")
        model, teacher = context.model, self.teacher(context.model.device)
        if teacher.info.kind != "diffusion":
            raise UserError(f"{teacher.path} is a consistency model; an ODE needs a diffusion model", field="teacher")
        if teacher.image_shape != model.shape or teacher.num_classes not in (0, model.num_classes):
            raise UserError(
                f"{teacher.path} makes other images than the model",
                "give the one from which it was distilled",
                field="teacher",
            )
        labels = classes.to(model.device) if classes is not None and teacher.num_classes else None
        watched = Watched(teacher.denoiser, "the teacher")
        noise = encode(
            watched,
            x,
            _TEACHER_STEPS,
            labels,
            sigma_min=teacher.info.sigma_min,
            sigma_max=model.info.sigma_max,
            rho=teacher.info.rho,
            clip=teacher.info.clip,
        )
        watched.check()
        return noise.cpu() * model.info.sigma_max


def seed_points(context: EditContext, seeds: Sequence[int]) -> Points:
    """Returns the noise of seeds, at sigma_max.

    Raises:
        UserError: seeds out of range, fewer than two, or classes that the model does not have.
    """
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise UserError(f"{seed} must lie between 0 and 2^64", field="seeds")
    _check_count(len(seeds))
    model = context.model
    noise, classes = ImageRandom(seeds).randn(*model.shape), _given_classes(context, len(seeds))
    if classes is None and model.num_classes:
        # One for the whole path: between classes an image can only jump.
        classes = random_labels(context.seed, [0], model.num_classes).expand(len(seeds))
    return Points(noise * model.info.sigma_max, model.info.sigma_max, classes)


def _given_classes(context: EditContext, count: int) -> Tensor | None:
    if context.class_labels is None:
        return None
    return torch.tensor(check_classes(context.class_labels, context.model.num_classes, count))


def _check_count(count: int) -> None:
    if count < 2:
        raise UserError(f"a path goes between 2 images at least, not {count}", "give more")
