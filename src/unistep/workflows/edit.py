"""`unistep.edit`: images inpainted, enlarged, denoised, ..., or walks from image to image, without training."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Union

from unistep.arguments import plain_arguments
from unistep.checks import MAX_SEED, check_one_of, check_range
from unistep.editing.tasks import make_task
from unistep.errors import UserError
from unistep.formats.embedded import EMBEDDED_MODELS, embedded_at
from unistep.prepared.table import RuntimeName
from unistep.workflows.models import EMBEDDED_TEACHER, ModelLike, as_model, open_any

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from unistep.editing.operators.operator import Operator
    from unistep.editing.result import EditResult
    from unistep.editing.tasks.task import EditTask
    from unistep.formats.model import LoadedModel

_log = logging.getLogger("unistep")

_MAX_BATCH = 100_000


@plain_arguments(empty=["output", "sheet", "class_labels"])
def edit(
    model: ModelLike,
    image: Union[str, os.PathLike[str], Sequence[str], "Image.Image", "Tensor", "Iterable[Any]", None],
    task: Union[str, "Operator", "Sequence[Operator]"],
    *,
    output: str | os.PathLike[str] | None = None,
    sheet: str | os.PathLike[str] | None = None,
    mask: Union[str, os.PathLike[str], "Image.Image", None] = None,
    margin: int | Sequence[int] | str | None = None,
    factor: Union[int, str, "tuple[int, int]", None] = None,
    blur: float | None = None,
    share: float | None = None,
    sigma: float | None = None,
    strength: float | None = None,
    quality: int | None = None,
    steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    settle: int | None = None,
    candidates: int = 1,
    class_labels: int | str | Sequence[int] | Sequence[int | str] | None = None,
    seed: int | None = None,
    seeds: Sequence[int] | None = None,
    stops: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
    loop: bool = False,
    teacher: Union[str, os.PathLike[str], "LoadedModel", None] = None,
    fit: Literal["crop", "resize", "pad", "tiles"] = "crop",
    degrade: bool = False,
    measurement: "Tensor | None" = None,
    batch_size: int = 64,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    runtime: RuntimeName | None = None,
    device: str | None = None,
    progress: bool = True,
) -> "EditResult":
    """Edits images with a consistency model, without training.

    Images may be of any size and mode; `fit` chooses how they are brought to the model's size. Where they are larger
    than the model's images, `fit="tiles"` keeps their size. The embedded models make digits and emoji only.

    Args:
        model: model folder, run directory, OpenAI .pt, name of an embedded model, or owner/name on the Hugging Face
            hub; in Python also a loaded model or a pipeline; default: mnist, the embedded model of digits.
        image: images or folders of images; in Python also Pillow images and uint8 tensors [C, H, W] or [N, C, H, W].
        task: name of a task; in Python also an operator of `unistep.editing.operators` or one an image, whose
            measurement is kept.
        output: file or folder for the results: a .png for one image (further candidates go beside it, as out-2.png), a
            folder for several; a .png grid, a .gif or an .mp4 for walks and interpolations.
        sheet: .png with a row for every image: before, known, after.
        mask: image that is white where to paint, or a folder of such with the images' names; or lower, upper, left,
            right, centre, random, or box:TOP,LEFT,HEIGHT,WIDTH; default: where the image is transparent.
        margin: pixels of the result to be painted around the image: one number, or left,top,right,bottom; default: a
            quarter of the model's side.
        factor: ratio of the sides of result and image, as 4, or 2x4 for height x width; default: 4.
        blur: standard deviation of the blur to be undone, in pixels of the model.
        share: share that is known: of the pixels by the mask `random`, default 0.5; of the coefficients in compressed
            sensing, default 0.25.
        sigma: noise level in units of [-1, 1]: of the noise or artefacts to be removed, default: estimated; or of the
            noise that is added, which decides how far the result may go from the image.
        strength: the same as a share of the model's way, from 0 to 1; instead of `sigma`.
        quality: quality of the JPEG compression by `degrade`, from 1 to 100; default: 15.
        steps: number of noise levels; default: the task's own.
        timesteps: indices of the model's noise grid, rising, as 5,22; instead of `steps`.
        sigmas: noise levels, falling, as 20,2,0.5; instead of `steps`.
        settle: number of evaluations without noise after these levels, of tasks that keep a part of the image; default:
            the task's own, and 0 after `timesteps` or `sigmas`.
        candidates: results an image, best first.
        class_labels: class of all images, or one an image, as 0,1,2; numbers, or names that the model has for its
            classes; default: guessed where there are few classes, else
            drawn.
        seed: seed of the run; image i uses the random stream (seed, i); default: 0.
        seeds: one seed an image, as 3,8,5, instead of `seed`; of a path the seeds of the images between which it goes.
        stops: number of images between which a walk goes, where no `seeds` are given; default: 6.
        frames: number of frames from one image to the next; default: 16.
        fps: frames a second; default: 12.
        loop: let a walk end where it begins.
        teacher: diffusion model that turns the images of an interpolation into noise, or embedded for that of the
            embedded model; default: noise is added.
        fit: way in which images are brought to the model's size: crop the middle; resize, refused where that would
            stretch; pad; tiles, which keep the image's own size.
        degrade: measure, blur, compress or add noise to whole images first, and compare the results with them.
        measurement: measurement of an operator, values in [-1, 1] or uint8, one row an image; instead of `image`.
        batch_size: results at once on an accelerator; a CPU takes few at once whatever is given.
        dtype: precision of a model given by name; default: auto, the fastest on the device; small networks stay fp32.
        runtime: runtime of a model given by name, on a CPU: eager, PyTorch itself; another one, for which the network
            is prepared once and kept (`unistep cache`); or auto, the fastest of those installed; default: eager.
        device: device of a model given by name: cpu, cuda, cuda:1 or mps; default: cuda where there is one.
        progress: show a progress bar on a terminal.

    Returns:
        The results of every image, best first, with their measurements; or the frames of a path.

    Raises:
        UserError: an image that cannot be read, options that contradict each other, the task or the model, a place that
            cannot be written to.
        NotFiniteError: (a UserError) the network gives NaN or infinite values, as fp16 can.

    Example:
        >>> import unistep
        >>> digits = unistep.sample(num_images=2, class_labels=[3, 8], progress=False)
        >>> result = unistep.edit(None, digits, "inpaint", mask="lower", class_labels=[3, 8], progress=False)
        >>> result
        EditResult(2 images of 28x28)
        >>> bool((result.images[:, :, :14] == digits.pixels[:, :, :14]).all())
        True
    """
    check_range("batch_size", batch_size, 1, _MAX_BATCH)
    check_range("seed", seed, 0, MAX_SEED)
    for one in seeds or ():
        check_range("seeds", one, 0, MAX_SEED)
    check_one_of(seed=seed, seeds=seeds)
    given: dict[str, Any] = {
        "mask": mask,
        "margin": margin,
        "factor": factor,
        "blur": blur,
        "share": share,
        "sigma": sigma,
        "strength": strength,
        "quality": quality,
        "steps": steps,
        "timesteps": timesteps,
        "sigmas": sigmas,
        "settle": settle,
        "candidates": candidates if candidates != 1 else None,
        "stops": stops,
        "frames": frames,
        "fps": fps,
        "loop": loop or None,
        "teacher": None if teacher is None else lambda device: _teacher(teacher, ready.model, device),
        "degrade": degrade or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    chosen = _task(task, given, measurement)
    import torch

    from unistep.editing.model import edit_model
    from unistep.editing.output import ResultWriter
    from unistep.editing.tasks.task import EditContext
    from unistep.generation.classes import class_numbers
    from unistep.images.read import list_images
    from unistep.runtime.interrupt import Interrupted

    images = [] if image is None else list_images(image)
    chosen.check_inputs(len(images))
    if fit != "crop" and not images:
        raise UserError(f"`fit` {fit} is for images, and none is given", "leave it out")
    writer = ResultWriter(chosen, images, output, sheet)
    ready = as_model(model, device=device, dtype=dtype, runtime=runtime)
    context = EditContext(
        edit_model(ready.model),
        seed=seed or 0,
        seeds=seeds,
        class_labels=class_numbers(class_labels, ready.model.info.class_names),
        fit=fit,
        batch_size=batch_size,
        advice=_advice(ready.model),
    )
    chosen.given_levels(context)  # refuses them before anything is said
    ready.log_notes()
    ready.cast()
    try:
        with torch.no_grad():
            result = chosen.run(context, images, progress=_bar(progress), on_image=writer.write)
    except torch.OutOfMemoryError:
        memory = f"{batch_size}: too many for the memory of {ready.device}"
        raise UserError(memory, "give fewer", field="batch_size") from None
    except Interrupted as stopped:
        if writer.written:
            stopped.add_note("what was written so far is whole; repeat the command for the rest")
        raise
    return writer.finish(result)


def _task(
    task: "str | Operator | Sequence[Operator]", given: dict[str, Any], measurement: "Tensor | None"
) -> "EditTask":
    """Returns the task with its options."""
    if isinstance(task, str):
        if measurement is not None:
            raise UserError("`measurement` is for an operator as `task`, not for a name", "give `image`")
        return make_task(task, given)
    import dataclasses

    from unistep.editing.operators.operator import Operator
    from unistep.editing.tasks.own import OperatorTask

    operators = list(task) if isinstance(task, Sequence) else [task]
    if not operators or not all(isinstance(one, Operator) for one in operators):
        raise UserError("is neither the name of a task nor an operator", field="task")
    taken = [field.name for field in dataclasses.fields(OperatorTask)]
    for name in given:
        if name not in taken:
            raise UserError(f"`{name}` is for tasks by name, not for an operator", "leave it out")
    return OperatorTask(operators=operators, measurement=measurement, **given)


def _teacher(
    teacher: "str | os.PathLike[str] | LoadedModel", model: "LoadedModel", device: "torch.device"
) -> "LoadedModel":
    """Opens the teacher of an interpolation on the model's device."""
    if not isinstance(teacher, str | os.PathLike):
        return teacher
    if teacher != "embedded":
        return open_any(teacher, device)
    row = embedded_at(model.path)
    return open_any(EMBEDDED_MODELS[row.teacher].folder if row and row.teacher else EMBEDDED_TEACHER, device)


def _advice(model: "LoadedModel") -> str:
    """Returns the note for images that are not of the model's kind."""
    row = embedded_at(model.path)
    if row is None:
        return ""
    return f"the embedded model makes {row.images} and nothing else; name a `model` of images like yours"


def _bar(active: bool) -> "Callable[[int], AbstractContextManager[Callable[[int], None]]]":
    from unistep.runtime.progress import progress_bar

    return lambda total: progress_bar(total, active=active)
