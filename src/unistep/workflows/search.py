"""`unistep.search`: the noise levels of a consistency model, or of an edit, that make a metric best."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Union

from unistep.arguments import plain_arguments
from unistep.checks import MAX_SEED, check_choice, check_place, check_range, user_path
from unistep.editing.tasks import MEASUREMENT_TASKS, check_options
from unistep.errors import UserError
from unistep.prepared.table import RuntimeName
from unistep.searching.steps import steps_of
from unistep.searching.table import FULL_REFERENCE_METRICS, SAMPLE_METRICS, SearchMetricName
from unistep.text import shown
from unistep.workflows.models import ImagesLike, ModelLike, ModelSource, ReadyModel, as_model, own_schedule_file

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from unistep.searching.result import SearchResult

    TaskName = str
else:
    TaskName = Literal[MEASUREMENT_TASKS]

_NUM_IMAGES = 2000
_NUM_EDITED = 200
_MAX_SETTLE = 10_000


@plain_arguments(empty=["output"])
def search(
    model: ModelLike = None,
    *,
    steps: int | Sequence[int] | str = 2,
    reference: ImagesLike | None = None,
    task: TaskName | None = None,
    images: ImagesLike | None = None,
    mask: Union[str, os.PathLike[str], "Image.Image", None] = None,
    margin: int | Sequence[int] | str | None = None,
    factor: int | str | None = None,
    blur: float | None = None,
    share: float | None = None,
    settle: int | None = None,
    metric: SearchMetricName | None = None,
    features: str | None = None,
    features_path: str | os.PathLike[str] | None = None,
    resize: Literal["legacy-tensorflow", "clean"] | None = None,
    resolution: int | None = None,
    channels: Literal[1, 3] | None = None,
    feature_cache: str | os.PathLike[str] | None = None,
    lpips_vgg: str | os.PathLike[str] | None = None,
    lpips_heads: str | os.PathLike[str] | None = None,
    num_images: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    runtime: RuntimeName | None = None,
    device: str | None = None,
    output: str | os.PathLike[str] | None = None,
    write: bool = False,
    progress: bool = True,
) -> "SearchResult":
    """Searches for the noise levels of a consistency model, for each number of steps.

    The timesteps of the sampler are chosen by golden-section search, point by point, so that a metric of the images
    against `reference` is best. With a `task` the noise levels of an edit are: whole `images` are measured, edited from
    the measurements, and compared with themselves; the first level is searched as well. What was found is evaluated
    once more on fresh images, beside the schedules that are used now. The same call with the same `output`, interrupted
    or repeated, goes on where it was, also with other numbers of steps.

    Args:
        model: model folder, run directory, OpenAI .pt, name of an embedded model, or owner/name on the Hugging Face
            hub, of a consistency model; in Python also a loaded model or a pipeline; default: mnist, the embedded model
            of digits.
        steps: numbers of network evaluations, of a task those of noise levels: 2, or 2,4, or 2..8.
        reference: images to compare with (a folder, a .zip, an .npz, or a bundled dataset), or an .npz of statistics.
        task: task of editing whose noise levels are searched; default: the sampler's timesteps are.
        images: whole images for a task, as `reference` takes them, brought to the model's size; some, spread over all
            of them, are searched with, and as many others judge.
        mask: part to be inpainted: an image that is white there, or lower, upper, left, right, centre, random, or
            box:TOP,LEFT,HEIGHT,WIDTH; one for all images.
        margin: pixels to be outpainted around the image: one number, or left,top,right,bottom.
        factor: ratio of the sides of result and image in upscaling, as 4, or 2x4 for height x width.
        blur: standard deviation of the blur to be undone in deblurring, in pixels of the model.
        share: share of the pixels (mask random) or of the coefficients (compressed sensing) that are known.
        settle: number of evaluations of a task without noise after the `steps`; default: the task's own.
        metric: number that is optimised: of a sampler it compares all images with the reference (default: fd), of a
            task each result with its image (default: psnr).
        features: name of the feature network, as inception or onnx:FILE; default: mnist for grey images of 28 or 32
            pixels, else inception.
        features_path: file of the network's weights; default: they are downloaded once.
        resize: method that brings images to the size of the network's input; default: that of the published numbers.
        resolution: side in pixels to which images of the reference are cropped and resized; default: their own.
        channels: number of channels to which images of the reference are converted, 1 (grey) or 3 (colour); default:
            their own.
        feature_cache: folder where features are kept; default: ~/.cache/unistep/features.
        lpips_vgg: file of VGG's weights for LPIPS; default: they are downloaded once.
        lpips_heads: file of the heads' weights for LPIPS; default: they are downloaded once.
        num_images: number of images a schedule, and of fresh ones; default: 2000, of a task 200.
        seed: seed of the images, the same for all schedules; image i uses the random stream (seed, i).
        batch_size: images a batch on an accelerator; a CPU takes few at once whatever is given.
        dtype: precision of a model given by name; default: auto, the fastest on the device; small networks stay fp32.
        runtime: runtime of a model given by name, on a CPU: eager, PyTorch itself; another one, for which the network
            is prepared once and kept (`unistep cache`); or auto, the fastest of those installed; default: eager.
        device: device of a model given by name: cpu, cuda, cuda:1 or mps; default: cuda where there is one.
        output: folder for search.json and curve.png; default: none is written.
        write: keep the schedules in the model folder, where they are better than what is there.
        progress: show a progress bar on a terminal.

    Returns:
        The schedules by their number of steps, with their numbers.

    Raises:
        UserError: arguments that contradict each other or the model, images or a model that cannot be opened, a metric
            that needs what is not there, a place that cannot be written to or holds another search.

    Example:
        >>> import unistep
        >>> found = unistep.search(steps=2, metric="is", num_images=20, progress=False)
        >>> found[2].steps, found[2].timesteps[0], sorted(found.options(2))
        (2, 0, ['timesteps'])
    """
    check_range("num_images", num_images, 20, 1_000_000)
    check_range("settle", settle, 0, _MAX_SETTLE)
    check_range("batch_size", batch_size, 1, 100_000)
    check_range("seed", seed, 0, MAX_SEED)
    check_choice("resize", resize, ("legacy-tensorflow", "clean"))
    folder = _check_folder(output)
    measured = {"mask": mask, "margin": margin, "factor": factor, "blur": blur, "share": share}
    options: dict[str, Any] = {name: value for name, value in measured.items() if value is not None}
    network = {"features": features, "features_path": features_path, "resize": resize}
    lpips = {"lpips_vgg": lpips_vgg, "lpips_heads": lpips_heads}
    of_reference = {"resolution": resolution, "channels": channels}
    if task is None:
        _check_sampler(reference, metric, {"images": images, "settle": settle, **options, **lpips}, of_reference)
    else:
        _check_task(task, images, metric, options, write, of_reference, reference)
        chosen = metric or next(iter(FULL_REFERENCE_METRICS))
        _check_metric(chosen, {name: ("class", value) for name, value in network.items()})
        _check_metric(chosen, {name: ("lpips", value) for name, value in lpips.items()})
    numbers = steps_of(steps, least=2 if task is None else 1)
    import torch

    from unistep.runtime.interrupt import Interrupted
    from unistep.runtime.progress import work_bar
    from unistep.searching.plot import check_matplotlib
    from unistep.searching.sampler_schedules import check_searchable
    from unistep.workflows.image_sources import Preparation, check_used, open_reference
    from unistep.workflows.search_run import FeatureOptions, SearchRun

    if folder is not None:
        check_matplotlib()
    ready = as_model(model, device=device, dtype=dtype, runtime=runtime)
    check_searchable(ready.model)
    target = _schedule_file(model, ready) if write else None
    most = ready.model.info.num_train_timesteps - 1
    if task is None and numbers[-1] > most:
        raise UserError(f"`steps` {steps}: the model's grid has {most} levels above sigma_min; give fewer")
    ready.log_notes()
    count = num_images or (_NUM_IMAGES if task is None else _NUM_EDITED)
    feature_options = FeatureOptions(features, features_path, resize, feature_cache)
    with work_bar(progress) as on_progress:
        run = SearchRun(ready, folder, count, seed, batch_size, feature_options, on_progress)
        if task is None:
            preparation = Preparation(resolution, channels)
            held = None if reference is None else open_reference(reference, preparation)
            check_used(preparation, (reference, None if held is None else held.images))
            run.prepare_sampler(held, metric or next(iter(SAMPLE_METRICS)))
        else:
            assert images is not None  # `_check_task` has looked
            name = metric or next(iter(FULL_REFERENCE_METRICS))
            run.prepare_task(task, options, settle, images, name, lpips_vgg=lpips_vgg, lpips_heads=lpips_heads)
        try:
            result = run.find(numbers)
        except Interrupted as stopped:
            if folder is not None:
                stopped.add_note(f"what was computed is kept in {output}; repeat the command to go on")
            raise
        except torch.OutOfMemoryError:
            memory = f"{batch_size}: too many for the memory of {ready.device}"
            raise UserError(memory, "give fewer", field="batch_size") from None
    return result if target is None else _kept(result, target)


def _check_folder(output: str | os.PathLike[str] | None) -> "Path | None":
    if output is None:
        return None
    if not os.fspath(output).strip():
        raise UserError("is empty; give a folder", field="output")
    folder = user_path(output)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{output} is a file; give a folder", field="output")
    check_place("output", folder)
    _refuse_a_strangers_folder(folder)
    return folder


def _refuse_a_strangers_folder(folder: "Path") -> None:
    """Refuses a folder that holds something else than a search."""
    inside = sorted(one.name for one in folder.iterdir() if not one.name.startswith(".")) if folder.exists() else []
    if inside and "search.json" not in inside:
        raise UserError(f"{folder} holds {shown(inside[0])}, which is of no search; give a new folder", field="output")


def _check_sampler(
    reference: object, metric: str | None, for_tasks: Mapping[str, Any], of_reference: Mapping[str, Any]
) -> None:
    """Refuses arguments that are not for the search for timesteps."""
    if metric in FULL_REFERENCE_METRICS:
        raise UserError(f"`metric` {metric} compares edits with images; give `task` and `images`")
    check_choice("metric", metric, tuple(SAMPLE_METRICS))
    for name, value in for_tasks.items():
        if value is not None:
            raise UserError(f"`{name}` is for the search for an edit's levels; give `task`, or leave it out")
    if reference is None and SAMPLE_METRICS[metric or next(iter(SAMPLE_METRICS))].needs != "nothing":
        raise UserError("`reference` is missing; give a dataset or statistics to compare with, as mnist")
    for name, value in of_reference.items():
        if reference is None and value is not None:
            raise UserError(f"`{name}` is for the images of a `reference`, and none is given; leave it out")


def _check_metric(metric: str, given: Mapping[str, tuple[str, Any]]) -> None:
    """Refuses arguments of another metric than the chosen one.

    Args:
        metric: name of the metric.
        given: metric and value of every argument, by its name.
    """
    for name, (own, value) in given.items():
        if value is not None and metric != own:
            raise UserError(f"`{name}` is for `metric` {own}, not for {metric}; leave it out")


def _check_task(
    task: str,
    images: object,
    metric: str | None,
    options: Mapping[str, Any],
    write: bool,
    of_reference: Mapping[str, Any],
    reference: object,
) -> None:
    """Refuses arguments that are not for the search for an edit's levels."""
    check_choice("task", task, MEASUREMENT_TASKS)
    if write:
        raise UserError("`write` is not for `task`: the levels of an edit are no part of a model; leave it out")
    if metric in SAMPLE_METRICS:
        known = ", ".join(FULL_REFERENCE_METRICS)
        raise UserError(f"`metric` {metric} does not compare results with their images; give {known}")
    check_choice("metric", metric, tuple(FULL_REFERENCE_METRICS))
    check_options(task, options)
    if reference is not None:
        raise UserError("`reference` is not for `task`, whose results are compared with their images; give `images`")
    for name, value in of_reference.items():
        if value is not None:
            raise UserError(f"`{name}` is not for `task`: images are brought to the model's size; leave it out")
    if task == "inpaint" and "mask" not in options:
        raise UserError("`mask` is missing; give the part to be painted, as lower")
    if images is None:
        raise UserError("`images` is missing; give whole images to edit and compare with, as mnist-test")


def _schedule_file(model: ModelLike, ready: ReadyModel) -> "Path":
    """The file of the model folder that schedules are kept in."""
    name = model.name if isinstance(model, ModelSource) else model
    if name is not None and not isinstance(name, str | os.PathLike):
        name = ready.model.path
    return own_schedule_file(None if name is None else os.fspath(name), ready.model)


def _kept(result: "SearchResult", target: "Path") -> "SearchResult":
    """Writes what is better than the schedules that the model is sampled with now."""
    from unistep.formats.model_folder.schedule import write_schedules
    from unistep.searching.sampler_schedules import with_schedules, worth_keeping

    better = [found for found in result.found if worth_keeping(found, result.better)]
    if better:
        write_schedules(target, with_schedules(result.info, [found.timesteps for found in better]))
    return replace(result, kept=tuple(found.steps for found in better), kept_in=target)
