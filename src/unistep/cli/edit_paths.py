"""`unistep edit interpolate` and `unistep edit walk`: from image to image through noise space."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unistep.cli.edit import EditConfig, given_labels, given_levels
from unistep.cli.sampling import numbers
from unistep.core.pixels import to_float
from unistep.core.random import ImageRandom, image_seed
from unistep.editing.encoding import encode
from unistep.editing.interpolation import walk
from unistep.editing.methods.guided import Guided
from unistep.editing.path import render_path
from unistep.editing.run import guess_classes
from unistep.editing.tasks import TASKS
from unistep.errors import UserError
from unistep.generation.plan import random_labels
from unistep.images.animation import check_animation, save_animation
from unistep.images.grid import save_grid
from unistep.images.read import list_images, read_picture
from unistep.runtime.progress import progress_bar

if TYPE_CHECKING:
    from unistep.editing.model import EditModel

_FRAMES, _STOPS, _FPS = 16, 6, 12.0
_TEACHER_STEPS = 18
_MOST_FRAMES = 100_000


def make_path(task: str, model: "EditModel", inputs: list[str], config: EditConfig) -> None:
    """The whole command, from the flags to the file.

    Raises:
        UserError: an input, a flag or an output that does not do; nothing is written then.
    """
    assert config.output is not None
    output, count = Path(config.output), config.frames or _FRAMES
    if output.suffix.lower() != ".png":
        check_animation(output)
    closed = bool(config.loop)
    points, classes, first = _points_of_images(model, inputs, config) if inputs else _points(task, model, config)
    legs = len(points) if closed else len(points) - 1
    if legs * count > _MOST_FRAMES:
        raise UserError(f"--frames {count}: {legs * count:,} frames in all are more than {_MOST_FRAMES:,}; give fewer")
    path = walk(points, count, closed=closed)
    levels = given_levels(model, config) or TASKS[task].levels(config.steps, first=first, rho=model.info.rho)
    if abs(levels[0] - first) > 1e-4 * first:
        raise UserError(
            f"the noise of the path is {first:g}, and the levels begin at {levels[0]:g}; let them begin there"
        )
    labels = None if classes is None else classes[[round(i / count) % len(points) for i in range(len(path))]]
    with progress_bar(len(path)) as on_done:
        frames = render_path(
            model, path, levels, labels, seed=config.seed, batch_size=config.batch_size, on_done=on_done
        )
    try:
        if output.suffix.lower() == ".png":
            columns = count if legs > 1 else min(len(frames), 12)
            save_grid(frames, output, columns)
        else:
            save_animation(frames, output, fps=config.fps or _FPS)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}; choose another --output") from None
    print(f"{len(frames)} frames, {len(levels)} evaluation{'s' * (len(levels) > 1)} each: {output}")


def _points(task: str, model: "EditModel", config: EditConfig) -> tuple[Tensor, Tensor | None, float]:
    """Noise at sigma_max for every stop, the class of each, and sigma_max."""
    if task == "interpolate" and config.seeds is None:
        raise UserError("interpolate goes between images or seeds; give --input A B, or --seeds 3,8")
    for flag in ("sigma", "teacher"):
        if getattr(config, flag) is not None:
            raise UserError(f"--{flag} is for interpolating --input; leave it out")
    if config.seeds is None:
        seeds = [image_seed(config.seed, i) for i in range(config.stops or _STOPS)]
    elif config.stops is not None:
        raise UserError("--seeds and --stops exclude each other; give one")
    else:
        seeds = [int(s) for s in numbers("seeds", config.seeds, int)]
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise UserError(f"--seeds {seed} must lie between 0 and 2^64")
    _check_stops(len(seeds))
    noise = ImageRandom(seeds).randn(*model.shape)
    classes = _classes(model, config, len(seeds))
    if classes is None and model.num_classes:
        # One for the whole way: between classes an image can only jump.
        classes = random_labels(config.seed, [0], model.num_classes).expand(len(seeds))
    return noise * model.info.sigma_max, classes, model.info.sigma_max


def _points_of_images(model: "EditModel", inputs: list[str], config: EditConfig) -> tuple[Tensor, Tensor | None, float]:
    """The noise that images come from, the class of each, and the level of the noise."""
    if config.seeds is not None:
        raise UserError("--input and --seeds exclude each other; give one")
    if config.fit == "tiles":
        raise UserError("--fit tiles is not for interpolations; give crop, resize or pad")
    files = list_images(inputs)
    _check_stops(len(files))
    x = to_float(torch.stack([read_picture(f.path, model.shape, config.fit).pixels for f in files])).to(model.device)
    classes = _classes(model, config, len(x))
    if classes is None and model.num_classes:
        guided = Guided(x, [model.info.sigma_max], model.info.sigma_min)
        classes = guess_classes(model, guided, seed=config.seed, batch_size=config.batch_size)
    if config.teacher is not None:
        return _encoded(model, x, classes, config), classes, model.info.sigma_max
    sigma = min(config.sigma or TASKS["vary"].sigma_first, model.info.sigma_max)
    noise = ImageRandom([image_seed(config.seed, i) for i in range(len(x))]).randn(*model.shape)
    return x.cpu() + sigma * noise, classes, sigma


def _encoded(model: "EditModel", x: Tensor, classes: Tensor | None, config: EditConfig) -> Tensor:
    from unistep.workflows.models import EMBEDDED_TEACHER, open_any

    if config.sigma is not None:
        raise UserError("--sigma and --teacher exclude each other: the teacher's noise is that of sigma_max")
    teacher = open_any(EMBEDDED_TEACHER if config.teacher == "embedded" else config.teacher, model.device)
    if teacher.info.kind != "diffusion":
        raise UserError(f"--teacher {config.teacher} is a consistency model; an ODE needs a diffusion model")
    if teacher.image_shape != model.shape or teacher.num_classes not in (0, model.num_classes):
        raise UserError(
            f"--teacher {config.teacher} makes other images than the model; give the one it was distilled from"
        )
    labels = classes.to(model.device) if classes is not None and teacher.num_classes else None
    info = teacher.info
    noise = encode(
        teacher.denoiser,
        x,
        _TEACHER_STEPS,
        labels,
        sigma_min=info.sigma_min,
        sigma_max=model.info.sigma_max,
        rho=info.rho,
    )
    return noise.cpu() * model.info.sigma_max


def _classes(model: "EditModel", config: EditConfig, count: int) -> Tensor | None:
    """Those that are given."""
    given = given_labels(config, count)
    if given is None:
        return None
    classes = torch.tensor([given] * count if isinstance(given, int) else given)
    if not model.num_classes:
        raise UserError(f"--class_labels {config.class_labels}: this model has no classes; leave it out")
    if not bool(((classes >= 0) & (classes < model.num_classes)).all()):
        raise UserError(
            f"--class_labels {config.class_labels}: this model has the classes 0 to {model.num_classes - 1}"
        )
    return classes


def _check_stops(count: int) -> None:
    if count < 2:
        raise UserError(f"a path goes between 2 images at least, not {count}; give more")
