"""`unistep evaluate`: how good images are, or the images of a model, against a reference."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unistep.cli.arguments import check_range, instantiate, new_parser, parse
from unistep.cli.measuring import MeasuringConfig, open_network, reference_of
from unistep.cli.output import check_place
from unistep.cli.sampling import MOST_IMAGES, SamplingConfig, make_labels, make_plan
from unistep.cli.source import add_source_options, source_options
from unistep.errors import UserError

if TYPE_CHECKING:
    import torch

    from unistep.metrics.report import Report
    from unistep.metrics.sources import ImageSource
    from unistep.runtime.processes import Processes

_DESCRIPTION = """Measure images: `unistep evaluate [SAMPLES|MODEL] --reference DATA|STATISTICS [options]`.

SAMPLES is a folder of images, a .zip or an .npz; MODEL is what `unistep sample` takes, and its images are made on the
fly and not stored; without either it is the embedded MNIST model. The reference is a dataset, or an .npz of statistics
(OpenAI's, EDM's, pytorch-fid's or one of --save_reference). Every number comes with its 95% interval. Features are kept
on the disk: the same command, broken off or repeated, goes on where it was, also with more images or measures, and on
several processes (torchrun -m unistep evaluate ...)."""

_DEFAULT_NUM_IMAGES = 10_000
_SAMPLING = ("steps", "timesteps", "sigmas", "solver", "class_labels")


@dataclass(frozen=True)
class EvaluateConfig(SamplingConfig, MeasuringConfig):
    """What to measure, and how.

    Args:
        metrics: names, separated by commas: fd (fid), sfd (sfid), kd (kid), is, pr (precision, recall), dc (density,
            coverage), nn (copies); default: all that the network and the reference allow but nn.
        num_images: of a model: how many are made, default 10000; of samples: the first so many, default all.
        skip_bad: leave out files that cannot be read as images, instead of stopping at the first.
        output: where everything measured goes, as JSON.
        save_reference: an .npz to which the reference's statistics go, which then does for the reference.
    """

    metrics: str | None = None
    num_images: int | None = None
    skip_bad: bool = False
    output: str = "metrics.json"
    save_reference: str | None = None

    def __post_init__(self) -> None:
        SamplingConfig.__post_init__(self)
        MeasuringConfig.__post_init__(self)
        check_range("--num_images", self.num_images, 2, MOST_IMAGES)
        for flag, ending in (("output", ".json"), ("save_reference", ".npz")):
            value = getattr(self, flag)
            if value is None:
                continue
            if Path(value).suffix.lower() != ending or Path(value).is_dir():
                raise UserError(f"--{flag} {value or repr('')}: give a file that ends in {ending}")
            check_place(Path(value))


def run(arguments: list[str]) -> None:
    """Parses, measures, writes and prints."""
    parser = new_parser("evaluate", _DESCRIPTION)
    parser.add_argument("samples", type=str | None, nargs="?", default=None, help="images, or a model that makes them")
    parser.add_class_arguments(EvaluateConfig, None)
    add_source_options(parser)
    parser.usage = "unistep evaluate [SAMPLES|MODEL] --reference DATA|STATISTICS [options]"
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        sys.exit(0)
    parsed = parse(parser, arguments)
    samples = parsed.pop("samples")
    if samples == "":
        raise UserError("SAMPLES is empty; name images or a model, or leave it out for the embedded MNIST model")
    options = source_options(parsed)
    config = instantiate(parser, parsed, EvaluateConfig)

    from unistep.runtime.interrupt import Interrupted, signals_raise

    try:
        with signals_raise():
            _evaluate(samples, options, config)
    except Interrupted as stopped:
        print(f"{stopped}; features made so far are kept; repeat the command to go on", file=sys.stderr)
        sys.exit(128 + stopped.signal.value)


def _evaluate(samples: str | None, options: dict[str, Any], config: EvaluateConfig) -> None:
    from unistep.metrics.evaluation import evaluate_images, possible_metrics
    from unistep.metrics.features.info import Kind
    from unistep.metrics.reference import check_alike
    from unistep.metrics.statistics import write_statistics
    from unistep.metrics.table import choose_metrics
    from unistep.runtime.device import pick_device
    from unistep.runtime.processes import join_processes
    from unistep.runtime.progress import work_bar

    processes = join_processes()
    device = pick_device(config.device, processes.local_rank)
    reference = reference_of(config, config.skip_bad)
    if config.save_reference is not None and (reference is None or reference.statistics is not None):
        raise UserError("--save_reference needs a reference of images; statistics are what is there already")
    source = _open_samples(samples, options, config, device, processes)
    check_alike(source.name, source.shape, reference)  # before a network is fetched
    named = None if config.metrics is None else [n.strip() for n in config.metrics.strip("[] ").split(",")]
    if named is None and reference is None:
        raise UserError("--reference is missing: give a dataset or statistics to compare with, as --reference mnist")
    network = open_network(config, source.shape, device)
    info = network.info
    metrics = choose_metrics(named, info) if named else possible_metrics(reference, info)
    saved: tuple[Kind, ...] = ("pool", "spatial") if config.save_reference is not None else ()
    with work_bar(processes.first) as on_progress:
        report = evaluate_images(
            source,
            reference,
            network,
            metrics,
            feature_cache=config.cache,
            processes=processes,
            on_progress=on_progress,
            save_kinds=[kind for kind in saved if kind in network.info.dims],
        )
    if not processes.first:
        return
    if config.save_reference is not None and reference is not None:
        write_statistics(Path(config.save_reference), report.reference_moments, network.info, reference.to_dict())
    _write(report, config)


def _open_samples(
    name: str | None,
    options: dict[str, Any],
    config: EvaluateConfig,
    device: "torch.device",
    processes: "Processes",
) -> "ImageSource":
    from unistep.data.open import BUNDLED
    from unistep.metrics.sources import ModelSource
    from unistep.runtime.precision import resolve_dtype, set_precision
    from unistep.workflows.evaluate import Preparation, open_images
    from unistep.workflows.models import is_model, open_any

    if name is not None and (name in BUNDLED or not is_model(name)):
        given = [f"--{flag}" for flag in _SAMPLING if getattr(config, flag) is not None] + [f"--{o}" for o in options]
        if given:
            raise UserError(f"{given[0]} is for models, and {name} is a place of images; leave it out")
        preparation = Preparation(config.resolution, config.channels, config.skip_bad)
        return open_images(name, preparation, config.num_images)
    model = open_any(name, device, **options)
    if processes.first:
        for note in model.notes:
            print(f"note: {note}", file=sys.stderr)
    plan = make_plan(model.info, config)
    count = config.num_images or _DEFAULT_NUM_IMAGES
    labels = make_labels(model.num_classes, config, count)
    dtype, _ = resolve_dtype(config.dtype, device)
    labelling = "none" if labels is None else config.class_labels or "drawn from the seed"
    source = ModelSource(model, plan, count, config.seed, labels, config.batch_size, device, dtype, labelling)
    _ = source.digest  # of the weights as they are in the file
    set_precision(model.denoiser.network, dtype)
    return source


def _write(report: "Report", config: EvaluateConfig) -> None:
    """metrics.json, the picture of copies where they were looked for, and the table on the screen."""
    path, *pictures = report.save(config.output)
    _print(report)
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"all of it, with the settings: {path}" + (f"; the pictures: {pictures[0]}" if pictures else ""))


def _print(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    table.add_column("better")
    for row in report.rows():
        table.add_row(*map(Text, row))
    console = Console()
    console.print(Text(report.heading), soft_wrap=True)
    console.print(table)
