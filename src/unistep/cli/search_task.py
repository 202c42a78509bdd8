"""`unistep search --task`: the noise levels of an edit, from the flags to the printed levels."""

import hashlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unistep.cli.measuring import open_network
from unistep.cli.search import find_all, tell_found
from unistep.cli.search_config import MEASURED_BY, SearchConfig, steps_of
from unistep.editing.model import edit_model
from unistep.editing.tasks import TASKS, Task, make_task
from unistep.editing.tasks.measurement import MeasurementTask
from unistep.editing.tasks.task import EditContext
from unistep.errors import UserError
from unistep.runtime.device import pick_device
from unistep.runtime.precision import resolve_dtype, set_precision
from unistep.runtime.progress import work_bar
from unistep.search.edit_schedules import MethodOf, TaskSearch, chosen_images, known_part, task_settings
from unistep.search.full_reference import FullReferenceMetric, Resources, open_full_reference
from unistep.search.plot import check_matplotlib
from unistep.search.record import open_record
from unistep.search.sampler_schedules import check_searchable
from unistep.search.scores import listed
from unistep.workflows.image_sources import Preparation, open_images
from unistep.workflows.models import open_any

if TYPE_CHECKING:
    from unistep.formats.model import LoadedModel
    from unistep.runtime.progress import Progress

_NUM_IMAGES = 200


def search_task(name: str | None, options: dict[str, Any], config: SearchConfig) -> None:
    """Opens everything, searches, writes and prints.

    Raises:
        UserError: a model, images or flags that do not do; nothing is written then.
    """
    check_matplotlib()
    device = pick_device(config.device)
    model = open_any(name, device, **options)
    check_searchable(model)
    task = TASKS[config.task or ""]
    numbers = steps_of(config.steps, least=1)
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)
    picture = Path(config.output) / "curve.png"
    with work_bar() as on_progress:
        search = _prepare(model, task, config, device, on_progress)
        title = f"{model.path.name}, {task.name}: {search.num_images:,} images a candidate"
        find_all(search, numbers, search.metric, title, picture, config, device)
    tell_found(search, search.metric, f"{model.path}, {task.name}", picture)
    settled = [] if not (count := _settle(task, config)) else ["--settle", f"{count}"]
    for found in search.found:
        print(shlex.join([*_command(name, config), "--sigmas", listed(found.schedule), *settled]))


def _prepare(
    model: "LoadedModel", task: Task, config: SearchConfig, device: torch.device, on_progress: "Progress"
) -> TaskSearch:
    """Opens everything else, cheap things first."""
    method_of, known = _method(model, task, config)
    _, side, _ = model.image_shape
    assert config.images is not None  # refused where the flags are read
    prepared = Preparation(side, model.image_shape[0])
    try:
        pixels = open_images(config.images, prepared).pixels
    except UserError as error:
        raise UserError(f"--images {config.images}: {error}") from None
    images = chosen_images(pixels, config.num_images or _NUM_IMAGES, config.images)
    metric = _metric(model, config, device)
    dtype, _ = resolve_dtype(config.dtype, device)
    settings = task_settings(model, task.name, known, images, metric, seed=config.seed, dtype=dtype)
    record = open_record(Path(config.output) / "search.json", settings)
    set_precision(model.denoiser.network, dtype)
    return TaskSearch(
        model,
        task.default,
        method_of,
        images,
        metric,
        record,
        seed=config.seed,
        batch_size=config.batch_size,
        on_progress=on_progress,
    )


def _method(model: "LoadedModel", task: Task, config: SearchConfig) -> tuple[MethodOf, dict[str, Any]]:
    """How images are edited, and what that depends on."""
    given = {flag: getattr(config, flag) for flag in MEASURED_BY if getattr(config, flag) is not None}
    made = make_task(task.name, given)
    assert isinstance(made, MeasurementTask)
    operator = made.operator_of_any(EditContext(edit_model(model), seed=config.seed))
    known: dict[str, Any] = given | {"operator": operator.name}
    mask = getattr(operator, "mask", None)
    if isinstance(mask, Tensor):
        known["mask's pixels"] = hashlib.sha256(mask.contiguous().numpy().data).hexdigest()
    known["settle"] = _settle(task, config)
    return known_part(operator, model, known["settle"]), known


def _settle(task: Task, config: SearchConfig) -> int:
    return task.default.settle if config.settle is None else config.settle


def _metric(model: "LoadedModel", config: SearchConfig, device: torch.device) -> FullReferenceMetric:
    resources = Resources(
        device,
        lambda: open_network(config, model.image_shape, device),
        config.lpips_vgg,
        config.lpips_heads,
    )
    try:
        return open_full_reference(config.metric or "psnr", resources)
    except UserError as error:
        raise UserError(str(error).replace("lpips.", "--lpips-")) from None


def _command(name: str | None, config: SearchConfig) -> list[str]:
    """The command line that edits like the search."""
    words = ["unistep", "edit", config.task or ""]
    if name is not None:
        words += ["--model", name]
    for flag in MEASURED_BY:
        if getattr(config, flag) is not None:
            words += [f"--{flag}", f"{getattr(config, flag)}"]
    return words
