"""`unistep edit`: change what is not known of images, with any consistency model."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unistep.cli.arguments import MAX_SEED, check_range, instantiate, new_parser, parse
from unistep.cli.output import check_place
from unistep.cli.sampling import numbers
from unistep.cli.source import add_source_options, source_options
from unistep.errors import UserError

if TYPE_CHECKING:
    from unistep.editing.model import EditModel

_DESCRIPTION = """Edit images: `unistep edit TASK --input IMAGES --output OUT [options]`.

{tasks}

IMAGES are files or folders, of any size and mode; --fit says how they are brought to the model's size. OUT is a .png
for one image (of several candidates the others go beside it, OUT-2.png and so on, best first) or a folder for several;
walks and interpolations are a .png grid, a .gif or an .mp4. --sheet draws what was given, what is known of it, and the
results."""

_MOST = {"candidates": 4096, "batch_size": 100_000, "steps": 10_000, "frames": 10_000, "stops": 1000}

MOST_SETTLED = 10_000

KNOWN_FOR = {
    "mask": ("inpaint",),
    "margin": ("outpaint",),
    "factor": ("upscale",),
    "blur": ("deblur",),
    "share": ("inpaint", "sense"),
}
"""The flags that say what is known of an image, and the tasks that have them."""

# What is for some tasks alone.
_FOR = KNOWN_FOR | {
    "sigma": ("denoise", "jpeg", "strokes", "vary", "interpolate"),
    "strength": ("jpeg", "strokes", "vary"),
    "quality": ("jpeg",),
    "settle": ("inpaint", "outpaint", "colorize", "upscale", "deblur", "sense"),
    "degrade": ("inpaint", "colorize", "upscale", "deblur", "sense", "denoise", "jpeg"),
    "seeds": ("interpolate", "walk"),
    "stops": ("walk",),
    "frames": ("interpolate", "walk"),
    "fps": ("interpolate", "walk"),
    "loop": ("walk",),
    "teacher": ("interpolate",),
}
_MADE = ("interpolate", "walk")


@dataclass(frozen=True)
class EditConfig:
    """What to do, and how.

    Args:
        output: a .png, or a folder for several images; a .png grid, .gif or .mp4 for walks and interpolations.
        sheet: a .png with a row for every image: before, known, after.
        mask: inpaint: an image that is white where to paint, or a folder of such with the images' names; or lower,
            upper, left, right, centre, random, or box:TOP,LEFT,HEIGHT,WIDTH; default: where the image is transparent.
        margin: outpaint: pixels of the result around the image: one number, or left,top,right,bottom; default: a
            quarter of the model's side.
        factor: upscale: how much, as 4, or 2x4 for height x width.
        blur: deblur: standard deviation of the blur in pixels of the model.
        share: sense: of the coefficients that are known, default 0.25; inpaint --mask random: of the pixels, 0.5.
        sigma: noise level in units of [-1, 1]: denoise, jpeg: of the input, default estimated; strokes, vary:
            how far the result may leave the input; interpolate: of the noise that is added.
        strength: jpeg, strokes, vary: the same as a share of the model's way, from 0 to 1; instead of --sigma.
        quality: jpeg --degrade: of the compression.
        steps: noise levels, default: the task's own number.
        timesteps: indices of the model's noise grid, rising, as 5,22; instead of --steps.
        sigmas: noise levels, falling, as 20,2,0.5; instead of --steps.
        settle: inpaint, outpaint, colorize, upscale, deblur, sense: evaluations without noise after these levels;
            default: the task's own number, and 0 after --timesteps or --sigmas.
        candidates: results an image, best first.
        class_labels: one class for all images, or one an image, as 0,1,2; default: guessed where there are few.
        seed: of the run; image i has the noise of seed and i.
        seeds: interpolate, walk: the seeds of the images between which it goes, as 3,8,5.
        stops: walk: images between which it goes, where --seeds does not say them.
        frames: interpolate, walk: from one image to the next.
        fps: frames a second.
        loop: walk: whether it ends where it began.
        teacher: interpolate: a diffusion model that turns the images into noise exactly; default: noise is added.
        fit: how images are brought to the model's size: crop the middle; resize, refused where that would stretch; pad;
            tiles, which keep the image's own size.
        batch_size: results at once on an accelerator; a CPU takes few at once whatever is given.
        dtype: what the network computes in; auto is what is fastest on the device.
        device: cpu, cuda, cuda:1 or mps; default: cuda where there is one.
    """

    output: str | None = None
    sheet: str | None = None
    mask: str | None = None
    margin: str | None = None
    factor: str | None = None
    blur: float | None = None
    share: float | None = None
    sigma: float | None = None
    strength: float | None = None
    quality: int | None = None
    steps: int | None = None
    timesteps: str | None = None
    sigmas: str | None = None
    settle: int | None = None
    candidates: int = 1
    class_labels: str | None = None
    seed: int = 0
    seeds: str | None = None
    stops: int | None = None
    frames: int | None = None
    fps: float | None = None
    loop: bool | None = None
    teacher: str | None = None
    fit: Literal["crop", "resize", "pad", "tiles"] = "crop"
    batch_size: int = 64
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    device: str | None = None

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            check_range(f"--{name}", getattr(self, name), 1, most)
        check_range("--settle", self.settle, 0, MOST_SETTLED)
        check_range("--seed", self.seed, 0, MAX_SEED)
        check_range("--quality", self.quality, 1, 100)
        for name in ("sigma", "fps", "blur"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1000:
                raise UserError(f"--{name} {value:g} must lie above 0 and below 1000")
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(f"--share {self.share:g} must lie above 0 and not above 1")
        given = [f"--{n}" for n in ("steps", "timesteps", "sigmas") if getattr(self, n) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other; give one")
        for flag in ("output", "sheet"):
            value = getattr(self, flag)
            if value is not None and not value.strip():
                raise UserError(f"--{flag} is empty; give a name")


def run(arguments: list[str]) -> None:
    """Parses, edits and writes."""
    from unistep.editing.tasks import TASKS

    width = max(map(len, TASKS))
    tasks = "\n".join(f"  {task.name:<{width}}  {task.text}" for task in TASKS.values())
    parser = new_parser("edit", _DESCRIPTION.format(tasks=tasks))
    parser.add_argument("task", type=str | None, nargs="?", default=None, help=f"one of {', '.join(TASKS)}")
    text = "what edits: as `unistep sample` takes it; default: the embedded MNIST model"
    parser.add_argument("--model", type=str | None, default=None, help=text)
    parser.add_argument("--input", type=str, nargs="+", default=[], help="images, or folders of images")
    parser.add_class_arguments(EditConfig, None)
    text = "the input is whole: it is measured, blurred, made noisy and so on first, and the result compared with it"
    parser.add_argument("--degrade", action="store_true", help=text)
    add_source_options(parser)
    parser.usage = "unistep edit TASK --input IMAGES --output OUT [options]"
    if "-h" in arguments or "--help" in arguments:
        import argparse

        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.print_help()
        sys.exit(0)
    parsed = parse(parser, arguments)
    task, model, inputs, degrade = (parsed.pop(name) for name in ("task", "model", "input", "degrade"))
    if model == "":
        raise UserError("--model is empty; name one, or leave it out for the embedded MNIST model")
    options = source_options(parsed)
    config = instantiate(parser, parsed, EditConfig)
    _check(task, inputs, degrade, config)

    from unistep.runtime.interrupt import Interrupted, signals_raise

    try:
        with signals_raise():
            _edit(task, model, options, inputs, degrade, config)
    except Interrupted as stopped:
        print(f"{stopped}; what was written so far is whole; repeat the command for the rest", file=sys.stderr)
        sys.exit(128 + stopped.signal.value)


def _check(task: str | None, inputs: list[str], degrade: bool, config: EditConfig) -> None:
    """What can be known before anything is opened."""
    from unistep.cli.arguments import nearest
    from unistep.editing.tasks import TASKS

    if task is None:
        raise UserError(f"TASK is missing; give one of {', '.join(TASKS)}")
    if task not in TASKS:
        near = nearest(task, TASKS)
        hint = f"did you mean {near}?" if near else f"give one of {', '.join(TASKS)}"
        raise UserError(f"task {task or repr('')} is unknown; {hint}")
    for flag, tasks in _FOR.items():
        given = degrade if flag == "degrade" else getattr(config, flag) is not None
        if given and task not in tasks:
            raise UserError(f"--{flag} is for {', '.join(tasks)}, not for {task}; leave it out")
    if config.sigma is not None and config.strength is not None:
        raise UserError("--sigma and --strength exclude each other; give one")
    if task == "denoise" and (config.timesteps or config.sigmas):
        raise UserError("denoise begins at the noise of its input; give --steps instead of --timesteps or --sigmas")
    if (config.timesteps or config.sigmas) and (config.sigma or config.strength) and task != "interpolate":
        raise UserError("--timesteps and --sigmas say where to begin, and so does --sigma or --strength; give one")
    if task in _MADE and config.sheet is not None:
        raise UserError(f"--sheet is not for {task}; --output x.png is a grid of its frames")
    if task in _MADE and config.candidates > 1:
        raise UserError(f"--candidates is not for {task}; leave it out")
    if task == "walk" and inputs:
        raise UserError("--input is not for walk, which goes from seed to seed; interpolate goes between images")
    if TASKS[task].inputs and not inputs:
        raise UserError("--input is missing; give an image or a folder of images")
    if config.output is None and config.sheet is None:
        raise UserError("--output is missing; give a .png" + (", .gif or .mp4" if task in _MADE else " or a folder"))
    for flag in ("output", "sheet"):
        value = getattr(config, flag)
        if value is None:
            continue
        path, endings = Path(value), (".png", ".gif", ".mp4") if flag == "output" and task in _MADE else (".png",)
        if path.suffix.lower() in endings:
            if path.is_dir():
                raise UserError(f"--{flag} {value} is a folder; give another name")
        elif flag == "sheet" or task in _MADE:
            raise UserError(f"--{flag} {value}: give a file that ends in {' or '.join(endings)}")
        elif path.is_file():
            raise UserError(f"--{flag} {value} is a file; give a .png or a folder")
        elif path.suffix and not path.is_dir() and not value.endswith("/"):
            raise UserError(f"--{flag} {value}: cannot write {path.suffix}; give a .png or a folder, as {value}/")
        check_place(path)


def _edit(
    task: str, name: str | None, options: dict[str, Any], inputs: list[str], degrade: bool, config: EditConfig
) -> None:
    import torch

    from unistep.editing.model import edit_model
    from unistep.runtime.device import pick_device
    from unistep.runtime.precision import resolve_dtype, set_precision
    from unistep.workflows.models import open_any

    device = pick_device(config.device)
    loaded = open_any(name, device, **options)
    dtype, why = resolve_dtype(config.dtype, device)
    for note in [*loaded.notes, f"dtype auto: {why}"] if config.dtype == "auto" else loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    set_precision(loaded.denoiser.network, dtype)
    model = edit_model(loaded)
    try:
        with torch.no_grad():
            if task in _MADE:
                from unistep.cli.edit_paths import make_path

                make_path(task, model, inputs, config)
            else:
                from unistep.cli.edit_images import edit_images

                edit_images(task, model, inputs, degrade, config)
    except torch.OutOfMemoryError:
        raise UserError(f"--batch_size {config.batch_size}: too many for the memory of {device}; give fewer") from None


def given_levels(model: "EditModel", config: EditConfig) -> list[float] | None:
    """The noise levels of --timesteps or --sigmas; None where neither is given."""
    from unistep.editing.methods.measurement import edit_levels

    if config.timesteps is not None:
        return edit_levels(model.info, timesteps=[int(t) for t in numbers("timesteps", config.timesteps, int)])
    if config.sigmas is not None:
        return edit_levels(model.info, sigmas=numbers("sigmas", config.sigmas, float))
    return None


def given_labels(config: EditConfig, count: int) -> list[int] | int | None:
    """The classes of --class_labels."""
    if config.class_labels is None:
        return None
    listed = [int(c) for c in numbers("class_labels", config.class_labels, int)]
    if len(listed) not in (1, count):
        raise UserError(
            f"--class_labels {config.class_labels}: {len(listed)} for {count} images; give one, or one each"
        )
    return listed[0] if len(listed) == 1 else listed
