"""What `unistep train RECIPE --dry-run` prints."""

import math
from collections.abc import Callable

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unistep.workflows.estimate.estimate import FLOPS_PARTS, Estimate, StageEstimate
from unistep.workflows.estimate.measure import AVERAGES, OPTIMIZER

_COLOURS = {1: "grey", 3: "colour"}


def show(name: str, estimate: Estimate, console: Console | None = None) -> None:
    """Prints an estimate: a column a stage, and below it what is to be known of the numbers.

    Args:
        name: of the run.
        estimate: of it.
        console: where; None is the terminal.
    """
    console = console or Console(highlight=False)
    images = estimate.images
    colours = _COLOURS.get(images.channels, f"{images.channels} channels")
    classes = f"{images.classes:,} classes" if images.classes else "no classes"
    console.print(Text(f"{name}: images of {images.size}x{images.size} ({images.origin}), {colours}, {classes}"))
    console.print(Text(f"on {device_name(estimate.device)}, precision {estimate.precision}"))
    table = Table(box=box.SIMPLE, show_edge=False, header_style="bold", pad_edge=False)
    table.add_column("")
    for stage in estimate.stages:
        table.add_column(stage.name)
    for number, (title, rows) in enumerate(_sections(estimate.stages)):
        if number:
            table.add_section()
        table.add_row(Text(title, style="bold"))
        for label, cells in rows:
            table.add_row(Text(f"  {label}"), *map(Text, cells))
    console.print(table)
    console.print()
    hours = [s.hours for s in estimate.stages]
    if all(h is not None for h in hours):
        console.print(Text(f"in all {in_hours(sum(h for h in hours if h is not None))} on this device\n", style="bold"))
    for note in _notes(estimate):
        console.print(Text(note))


Rows = list[tuple[str, list[str]]]


def _sections(stages: tuple[StageEstimate, ...]) -> list[tuple[str, Rows]]:
    def row(label: str, cell: Callable[[StageEstimate], str]) -> tuple[str, list[str]]:
        return label, [cell(s) for s in stages]

    training: Rows = [
        row("network", lambda s: s.network),
        row("parameters", lambda s: f"{s.parameters:,}"),
        row("method", lambda s: s.method),
        row("steps", lambda s: f"{s.config.steps:,}"),
        row("batch", _batch),
        row("images", lambda s: f"{s.images:,}"),
    ]
    flops: Rows = [row("one evaluation", lambda s: in_flops(s.flops.evaluation))]
    for part in sorted({part for s in stages for part in s.flops.parts}, key=FLOPS_PARTS.index):
        flops.append(row(part, lambda s, part=part: in_flops(s.flops.parts[part]) if part in s.flops.parts else "-"))
    flops.append(row("one training image", lambda s: in_flops(s.flops.total)))
    memory: Rows = []
    for part in dict.fromkeys(part for s in stages for part in s.memory.parts):
        memory.append(
            row(_memory_label(part), lambda s, part=part: _memory_cell(s, part) if part in s.memory.parts else "-")
        )
    memory.append(row("activations", lambda s: in_bytes(s.memory.activations(s.micro_batch))))
    memory.append(row("  of one image", lambda s: in_bytes(s.memory.activations(1))))
    memory.append(row("total", lambda s: in_bytes(s.memory.total(s.micro_batch))))
    sections = [("training", training), ("FLOPs an image", flops), ("memory", memory)]
    if all(s.measured is not None for s in stages):
        time: Rows = [
            row("measured", _measured),
            row("images a second", lambda s: three_digits(s.images_per_second or 0)),
            row("a step of the batch", lambda s: in_seconds(s.config.batch_size / (s.images_per_second or math.inf))),
            row("the stage", lambda s: in_hours(s.hours or 0)),
        ]
        sections.append(("time", time))
    return sections


def _batch(stage: StageEstimate) -> str:
    parts = stage.config.accumulation
    return f"{stage.config.batch_size:,}" + (f" ({parts} x {stage.micro_batch:,})" if parts > 1 else "")


def _memory_label(part: str) -> str:
    labels = {OPTIMIZER: "optimizer, two moments", "target": "target network", "teacher": "teacher network"}
    return labels.get(part, part)


def _memory_cell(stage: StageEstimate, part: str) -> str:
    text = in_bytes(stage.memory.parts[part])
    count = len(stage.config.ema_decays)
    return f"{text} ({count})" if part == AVERAGES and count > 1 else text


def _measured(stage: StageEstimate) -> str:
    m = stage.measured
    assert m is not None
    if m.what == "one evaluation":
        return "one evaluation of 1 image"
    steps = "1 step" if m.steps == 1 else f"{m.steps} steps"
    of = f"{steps} of {m.micro_batch:,} image{'s' * (m.micro_batch > 1)}"
    return of if m.what == "whole step" else f"{of}, forward and backward only"


def _notes(estimate: Estimate) -> list[str]:
    notes = [f"Note: {note}." for note in estimate.notes]
    for stage in estimate.stages:
        needed, free = stage.memory.total(stage.micro_batch), estimate.free_memory
        if needed <= free:
            continue
        text = f"{stage.name}: {in_bytes(needed)} is more than the {in_bytes(free)} that are free here"
        accumulation = stage.accumulation_within(free)
        flag = f"--{stage.name}.accumulation {accumulation}"
        text += f"; {flag} would fit" if accumulation else ", whatever the accumulation"
        notes.append(f"Note: {text}.")
    notes.append(
        "FLOPs are 2 x MACs, of convolutions, matrix products and attention. Memory: MiB and GiB, fp32 weights; "
        "activations are what a forward pass keeps for the backward pass; kernels need some more."
    )
    if any(s.measured is not None for s in estimate.stages):
        measured = {s.measured.what for s in estimate.stages if s.measured is not None}
        text = "Time: as busy as this device is now, on random images, without reading data, previews and checkpoints."
        if "forward and backward" in measured:
            text += " Optimizer and averages, which did not fit into the memory here, are left out."
        if "one evaluation" in measured:
            text += " A step was too long or too large to be measured: one evaluation, scaled by FLOPs."
        if any(s.measured.micro_batch < s.micro_batch for s in estimate.stages if s.measured is not None):
            text += " Micro-batches smaller than the recipe's were measured; larger ones may be faster on accelerators."
        notes.append(text)
    return notes


def in_flops(count: float) -> str:
    """A number of FLOPs, in the unit that suits it."""
    unit = "T" if count >= 1e12 else "G" if count >= 1e9 else "M"
    return f"{three_digits(count / {'T': 1e12, 'G': 1e9, 'M': 1e6}[unit])} {unit}FLOP"


def three_digits(value: float) -> str:
    """A number rounded to three digits, or to a whole one."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def in_bytes(count: float) -> str:
    """A number of bytes in MiB or GiB."""
    return f"{count / 2**20:,.1f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


def in_seconds(seconds: float) -> str:
    """A length of time that may be short."""
    return f"{three_digits(seconds * 1000)} ms" if seconds < 1 else f"{three_digits(seconds)} s"


def in_hours(hours: float) -> str:
    """A length of time in hours, and in the unit that suits it."""
    digits = max(1, 1 - math.floor(math.log10(hours))) if hours > 0 else 1
    text, days = f"{hours:,.{digits}f} hours", hours / 24
    if hours < 1:
        return f"{text} ({hours * 60:.1f} minutes)"
    if days < 2:
        return text
    return (
        f"{hours:,.0f} hours ({days:,.0f} days)" if days < 1000 else f"{hours:,.0f} hours ({days / 365.25:,.0f} years)"
    )


def device_name(device: torch.device) -> str:
    """The device as a person would say it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"the CPU, {threads} thread{'s' * (threads > 1)}"
