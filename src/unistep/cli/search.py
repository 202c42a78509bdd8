"""`unistep search`: the timesteps that a consistency model is best sampled with, for each number of steps."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unistep.cli.arguments import instantiate, new_parser, parse
from unistep.cli.command import spelled
from unistep.cli.measuring import open_network, reference_of
from unistep.cli.search_config import SearchConfig, steps_of
from unistep.cli.source import add_source_options, source_options
from unistep.errors import UserError

if TYPE_CHECKING:
    from unistep.runtime.progress import Progress
    from unistep.search.sampler_schedules import ScheduleSearch
    from unistep.search.scores import Found

_DESCRIPTION = """Search for timesteps: `unistep search [MODEL] --reference DATA|STATISTICS [options]`.

MODEL is a consistency model, as `unistep sample` takes it; without it the embedded MNIST model. For each number of
steps the noise levels are found at which the images measure best, by golden-section search point by point, and measured
again on fresh images beside evenly spaced ones and the model's own. OUTPUT receives search.json and curve.png. The same
command, broken off or repeated, goes on where it was, also with other numbers of steps.

`unistep search [MODEL] --task TASK --images DATA [options]` finds the noise levels of an edit: whole images are
measured, edited from what is known of them, and compared with what they were. The first level is searched as well. What
is found is printed as flags for `unistep edit`."""

_NUM_IMAGES = 2000


def run(arguments: list[str]) -> None:
    """Parses, searches, writes and prints."""
    parser = new_parser("search", _DESCRIPTION)
    parser.add_argument("model", type=str | None, nargs="?", default=None, help="what is sampled")
    parser.add_class_arguments(SearchConfig, None)
    text = "keep what was found in the model folder, where it is better than what is there"
    parser.add_argument("--write", action="store_true", help=text)
    add_source_options(parser)
    parser.usage = (
        "unistep search [MODEL] --reference DATA|STATISTICS [options]\n"
        "       unistep search [MODEL] --task TASK --images DATA [options]"
    )
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        sys.exit(0)
    flags = {s.lstrip("-"): s for action in parser._actions for s in action.option_strings}
    with spelled(flags):
        _run(parser, arguments)


def _run(parser: Any, arguments: list[str]) -> None:
    parsed = parse(parser, arguments)
    model, write = parsed.pop("model"), parsed.pop("write")
    if model == "":
        raise UserError("MODEL is empty; name one, or leave it out for the embedded MNIST model")
    options = source_options(parsed)
    config = instantiate(parser, parsed, SearchConfig)
    if write and config.task is not None:
        raise UserError("--write is not for --task: an edit's levels are printed for unistep edit, no part of a model")

    from unistep.runtime.interrupt import Interrupted, signals_raise

    try:
        with signals_raise():
            if config.task is None:
                _search(model, options, config, write)
            else:
                from unistep.cli.search_task import search_task

                search_task(model, options, config)
    except Interrupted as stopped:
        print(f"{stopped}; what was measured is kept in {config.output}; repeat the command to go on", file=sys.stderr)
        sys.exit(128 + stopped.signal.value)


def _search(name: str | None, options: dict[str, Any], config: SearchConfig, write: bool) -> None:
    from unistep.runtime.device import pick_device
    from unistep.runtime.progress import work_bar
    from unistep.search.plot import check_matplotlib
    from unistep.search.sampler_schedules import check_searchable
    from unistep.workflows.models import open_any, own_schedule_file

    check_matplotlib()
    device = pick_device(config.device)
    model = open_any(name, device, **options)
    check_searchable(model)
    target = own_schedule_file(name, model) if write else None
    numbers = steps_of(config.steps)
    most = model.info.num_train_timesteps - 1
    if numbers[-1] > most:
        raise UserError(f"--steps {config.steps}: the model's grid has {most} levels above sigma_min; give fewer")
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)
    picture = Path(config.output) / "curve.png"
    with work_bar() as on_progress:
        search = _prepare(model, config, device, on_progress)
        title = f"{model.path.name}: {search.num_images:,} images a candidate"
        find_all(search, numbers, search.metric, title, picture, config, device)
    tell_found(search, search.metric, str(model.path), picture)
    if target is not None:
        _write(target, search)


def _prepare(model: Any, config: SearchConfig, device: Any, on_progress: "Progress") -> "ScheduleSearch":
    """Opens everything else, cheap things first, and measures the reference."""
    from unistep.metrics.reference import check_alike, check_reference
    from unistep.metrics.table import check_features
    from unistep.runtime.precision import resolve_dtype, set_precision
    from unistep.search.metric import open_search_metric
    from unistep.search.record import open_record
    from unistep.search.sampler_schedules import ScheduleSearch, search_settings
    from unistep.search.table import SAMPLE_METRICS

    reference = reference_of(config)
    check_alike(str(model.path), model.image_shape, reference)
    network = open_network(config, model.image_shape, device)
    row = SAMPLE_METRICS[config.metric or "fd"]
    check_features(row, network.info)
    check_reference(reference, row, network.info)

    def told(done: int, total: int) -> None:
        on_progress("features of the reference", done, total)

    metric = open_search_metric(row, network, reference, config.cache, told)
    dtype, _ = resolve_dtype(config.dtype, device)
    count = config.num_images or _NUM_IMAGES
    settings = search_settings(model, metric, num_images=count, seed=config.seed, dtype=dtype)
    record = open_record(Path(config.output) / "search.json", settings)
    set_precision(model.denoiser.network, dtype)
    return ScheduleSearch(
        model,
        network,
        metric,
        record,
        num_images=count,
        seed=config.seed,
        batch_size=config.batch_size,
        device=device,
        on_progress=on_progress,
    )


def find_all(
    search: Any, numbers: "Sequence[int]", measure: Any, title: str, picture: Path, config: SearchConfig, device: Any
) -> None:
    """Searches for every number of steps, and draws after each what is found so far.

    Args:
        search: has `find`, `found` and a `model`.
        numbers: of steps, rising.
        measure: has a `title`.
        title: of the picture.
        picture: its place.
        config, device: for the message where the memory does not do.
    """
    import torch

    from unistep.search.plot import save_curves

    try:
        for steps in numbers:
            search.find(steps)
            save_curves(picture, search.found, search.model.info, title, measure.title)
    except torch.OutOfMemoryError:
        raise UserError(f"--batch_size {config.batch_size}: too many for the memory of {device}; give fewer") from None


def tell_found(search: Any, measure: Any, what: str, picture: Path) -> None:
    """Prints the table and where the rest is."""
    heading = f"{what}: {measure.title} of {search.num_images:,} fresh images, {measure.better} is better"
    print_found(heading, measure.title, search.found)
    print(f"all scores: {search.record.path}; drawn: {picture}")


def print_found(heading: str, measure: str, found: "Sequence[Found]") -> None:
    """Prints the table of what was found."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("steps", justify="right")
    table.add_column("schedule")
    table.add_column(found[0].unit, overflow="fold")
    table.add_column(Text(measure))
    table.add_column("found less this")
    rows = table_rows(found)
    if len(rows[0]) > len(table.columns):
        table.add_column("off what is known")
    for row in rows:
        if row[0] and table.row_count:
            table.add_section()
        table.add_row(*map(Text, row))
    console = Console()
    console.print(Text(heading), soft_wrap=True)
    console.print(table)


def table_rows(found: "Sequence[Found]") -> list[tuple[str, ...]]:
    """The table, as (steps, what, schedule, number, difference), and what is told beside where there is something."""
    from unistep.search.scores import listed

    return [
        (
            str(one.steps) if place == 0 else "",
            ", ".join(judged.names),
            listed(judged.schedule),
            str(judged.fresh),
            "" if judged.difference is None else str(judged.difference),
            *([] if judged.residual is None else [f"{judged.residual:.3f}"]),
        )
        for one in found
        for place, judged in enumerate(one.judged)
    ]


def _write(target: Path, search: "ScheduleSearch") -> None:
    """Keeps what is better than what the model is sampled with now."""
    from unistep.formats.model_folder.schedule import write_schedules
    from unistep.search.sampler_schedules import with_schedules, worth_keeping

    better = search.metric.better
    kept = [found for found in search.found if worth_keeping(found, better)]
    for found in search.found:
        if found not in kept:
            print(f"not written: for {found.steps} steps nothing better than now was found, on fresh images")
    if kept:
        write_schedules(target, with_schedules(search.info, [found.timesteps for found in kept]))
        listed = " and ".join(",".join(map(str, found.timesteps)) for found in kept)
        print(f"written: timesteps {listed} to {target}")
