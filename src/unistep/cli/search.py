"""`unistep search`: the timesteps that a consistency model is best sampled with, for each number of steps."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unistep.cli.arguments import MAX_SEED, check_range, instantiate, new_parser, parse
from unistep.cli.measuring import MeasuringConfig, open_network, reference_of
from unistep.cli.output import check_place
from unistep.cli.source import add_source_options, source_options
from unistep.errors import UserError

if TYPE_CHECKING:
    from unistep.build.search import Found, Progress, ScheduleSearch
    from unistep.metrics.yardstick import Yardstick

_DESCRIPTION = """Search for timesteps: `unistep search [MODEL] --reference DATA|STATISTICS [options]`.

MODEL is a consistency model, as `unistep sample` takes it; without it the embedded MNIST model. For each number of
steps the noise levels are found at which the images measure best, by golden-section search point by point, and measured
again on fresh images beside evenly spaced ones and the model's own. OUTPUT receives search.json and curve.png. The same
command, broken off or repeated, goes on where it was, also with other numbers of steps."""

_MOST_STEPS = 64


@dataclass(frozen=True)
class SearchConfig(MeasuringConfig):
    """What to search for.

    Args:
        steps: numbers of network evaluations: 2, or 2,4, or 2..8.
        metric: what is made best, on fd (Frechet distance), sfd (its spatial form), kd (kernel distance), is (inception
            score), precision or recall.
        num_images: images a candidate; as many fresh ones judge what was found.
        seed: of the images, the same for all candidates.
        batch_size: images at once on an accelerator; a CPU takes few at once whatever is given.
        output: a folder for search.json and curve.png.
        dtype: what the network computes in; auto is what is fastest on the device.
        device: cpu, cuda, cuda:1 or mps; default: cuda where there is one.
    """

    steps: str = "2"
    metric: Literal["fd", "sfd", "kd", "is", "precision", "recall"] = "fd"
    num_images: int = 2000
    seed: int = 0
    batch_size: int = 64
    output: str = "search"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("--num_images", self.num_images, 20, 1_000_000)
        check_range("--batch_size", self.batch_size, 1, 100_000)
        check_range("--seed", self.seed, 0, MAX_SEED)
        steps_of(self.steps)
        path = Path(self.output)
        if not self.output.strip():
            raise UserError("--output is empty; give a folder")
        if path.exists() and not path.is_dir():
            raise UserError(f"--output {self.output} is a file; give a folder")
        check_place(path)


def steps_of(text: str) -> list[int]:
    """The numbers that `2..8`, `2,4` or `2` mean, rising.

    Raises:
        UserError: it is none of these, or a number is out of range.
    """
    found: set[int] = set()
    for part in text.strip("[] ").split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*\.\.\s*(\d{1,9}))?\s*", part)
        if match is None:
            raise UserError(f"--steps {text or repr('')}: give numbers of steps, as 2 or 2,4 or 2..8")
        first, last = int(match[1]), int(match[2] or match[1])
        for number in (first, last):
            if not 2 <= number <= _MOST_STEPS:
                reason = "one step begins at sigma_max and has nothing to choose; " if number == 1 else ""
                raise UserError(f"--steps {text}: {reason}numbers of steps lie between 2 and {_MOST_STEPS}")
        if first > last:
            raise UserError(f"--steps {text}: the range {first}..{last} is empty; give {last}..{first}")
        found |= set(range(first, last + 1))
    return sorted(found)


def run(arguments: list[str]) -> None:
    """Parses, searches, writes and prints."""
    parser = new_parser("search", _DESCRIPTION)
    parser.add_argument("model", type=str | None, nargs="?", default=None, help="what is sampled")
    parser.add_class_arguments(SearchConfig, None)
    text = "keep what was found in the model folder, where it is better than what is there"
    parser.add_argument("--write", action="store_true", help=text)
    add_source_options(parser)
    parser.usage = "unistep search [MODEL] --reference DATA|STATISTICS [options]"
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        sys.exit(0)
    parsed = parse(parser, arguments)
    model, write = parsed.pop("model"), parsed.pop("write")
    if model == "":
        raise UserError("MODEL is empty; name one, or leave it out for the embedded MNIST model")
    options = source_options(parsed)
    config = instantiate(parser, parsed, SearchConfig)
    if config.reference is None and config.metric != "is":
        raise UserError("--reference is missing: give a dataset or statistics to compare with, as --reference mnist")

    from unistep.training.interrupt import Interrupted, signals_raise

    try:
        with signals_raise():
            _search(model, options, config, write)
    except Interrupted as stopped:
        print(f"{stopped}; what was measured is kept in {config.output}; repeat the command to go on", file=sys.stderr)
        sys.exit(128 + stopped.signal.value)


def _search(name: str | None, options: dict[str, Any], config: SearchConfig, write: bool) -> None:
    import torch

    from unistep.build.models import open_any
    from unistep.build.search import check_searchable, own_schedule_file
    from unistep.build.search_picture import check_matplotlib, save_curves
    from unistep.cli.progress import doing_bar
    from unistep.pipelines.device import pick_device

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
    with doing_bar() as on_progress:
        search = _prepare(model, config, device, on_progress)
        title = f"{model.path.name}: {config.num_images:,} images a candidate"
        try:
            for steps in numbers:
                search.find(steps)
                save_curves(picture, search.found, model.info, title, search.yardstick.title)
        except torch.OutOfMemoryError:
            raise UserError(
                f"--batch_size {config.batch_size}: too many for the memory of {device}; give fewer"
            ) from None
    _print(str(model.path), search)
    print(f"all scores: {search.record.path}; drawn: {picture}")
    if target is not None:
        _write(target, search)


def _prepare(model: Any, config: SearchConfig, device: Any, on_progress: "Progress") -> "ScheduleSearch":
    """Opens everything else, cheap things first, and measures the reference."""
    from unistep.build.search import ScheduleSearch, search_settings
    from unistep.build.search_record import open_record
    from unistep.metrics.evaluate import check_alike
    from unistep.metrics.yardstick import check_metric, open_yardstick
    from unistep.networks.precision import resolve_dtype, set_precision

    reference = reference_of(config)
    check_alike(str(model.path), model.image_shape, reference)
    network = open_network(config, model.image_shape, device)
    check_metric(config.metric, network.info, reference)

    def told(done: int, total: int) -> None:
        on_progress("features of the reference", done, total)

    yardstick = open_yardstick(config.metric, network, reference, config.cache, told)
    dtype, _ = resolve_dtype(config.dtype, device)
    settings = search_settings(model, yardstick, num_images=config.num_images, seed=config.seed, dtype=dtype)
    record = open_record(Path(config.output) / "search.json", settings)
    set_precision(model.denoiser.network, dtype)
    return ScheduleSearch(
        model,
        network,
        yardstick,
        record,
        num_images=config.num_images,
        seed=config.seed,
        batch_size=config.batch_size,
        device=device,
        on_progress=on_progress,
    )


def _print(name: str, search: "ScheduleSearch") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    yardstick = search.yardstick
    heading = f"{name}: {yardstick.title} of {search.num_images:,} fresh images, {yardstick.better} is better"
    table = Table(title=Text(heading), title_justify="left")
    table.add_column("steps", justify="right")
    table.add_column("schedule")
    table.add_column("timesteps")
    table.add_column(Text(yardstick.title))
    table.add_column("found less this")
    for row in table_rows(search.found):
        if row[0] and table.row_count:
            table.add_section()
        table.add_row(*map(Text, row))
    Console().print(table)


def table_rows(found: "Sequence[Found]") -> list[tuple[str, str, str, str, str]]:
    """The table, as (steps, what, timesteps, number, difference)."""
    return [
        (
            str(one.steps) if place == 0 else "",
            ", ".join(judged.names),
            ",".join(map(str, judged.timesteps)),
            str(judged.fresh),
            "" if judged.difference is None else str(judged.difference),
        )
        for one in found
        for place, judged in enumerate(one.judged)
    ]


def _write(target: Path, search: "ScheduleSearch") -> None:
    """Keeps what is better than what the model is sampled with now."""
    from unistep.build.search import with_schedules, worth_keeping
    from unistep.formats.schedule_config import write_schedules

    yardstick: Yardstick = search.yardstick
    kept = [found for found in search.found if worth_keeping(found, yardstick.better)]
    for found in search.found:
        if found not in kept:
            print(f"not written: for {found.steps} steps nothing better than now was found, on fresh images")
    if kept:
        write_schedules(target, with_schedules(search.info, [found.timesteps for found in kept]))
        listed = " and ".join(",".join(map(str, found.timesteps)) for found in kept)
        print(f"written: timesteps {listed} to {target}")
