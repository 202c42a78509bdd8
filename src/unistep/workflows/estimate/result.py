"""The estimate of a run: the numbers, and a table of them in plain text, with a column for each stage."""

import io
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from unistep.config.values import plain
from unistep.training.config import TrainerConfig
from unistep.workflows.estimate.count import FLOPS_PARTS, FP32, Flops
from unistep.workflows.estimate.measure import AVERAGES, OPTIMIZER, Measurement, Memory
from unistep.workflows.estimate.units import device_name, in_bytes, in_flops, in_hours, in_seconds, three_digits
from unistep.workflows.runs.design import ImageKind

_COLOURS = {1: "grey", 3: "colour"}


@dataclass(frozen=True)
class StageEstimate:
    """Estimate of a stage on one device.

    Args:
        name: name of the stage.
        network: class of its network.
        method: training method, in words.
        config: its length and pace.
        flops: FLOPs an image.
        memory: memory of a training step.
        measured: time of a training step; None where none was to be measured.
    """

    name: str
    network: str
    method: str
    config: TrainerConfig
    flops: Flops
    memory: Memory
    measured: Measurement | None

    @property
    def parameters(self) -> int:
        """Number of parameters, all of them trained."""
        return self.memory.parts["weights"] // FP32

    @property
    def images(self) -> int:
        """Number of images that the stage trains on, counting repetitions."""
        return self.config.steps * self.config.batch_size

    @property
    def micro_batch(self) -> int:
        """Number of images of one forward and backward pass."""
        return self.config.batch_size // self.config.accumulation

    @property
    def images_per_second(self) -> float | None:
        """Pace of the recipe's batch; None where no time was measured."""
        return None if self.measured is None else self.measured.images_per_second(self.config.batch_size)

    @property
    def hours(self) -> float | None:
        """Hours that the stage would take; None where no time was measured."""
        rate = self.images_per_second
        return None if rate is None else self.images / rate / 3600

    def accumulation_within(self, memory: float) -> int | None:
        """The least accumulation with which a step fits into so many bytes; None where not even one image does."""
        batch = self.config.batch_size
        parts = [n for n in range(self.config.accumulation, batch + 1) if batch % n == 0]
        return next((n for n in parts if self.memory.total(batch // n) <= memory), None)


@dataclass(frozen=True, repr=False)
class Estimate:
    """Estimate of a run on one device; as text it is a table.

    Args:
        name: name of the run.
        images: images that it is trained on.
        stages: its stages.
        device: the device.
        precision: arithmetic of the forward and backward passes.
        free_memory: bytes that are free on the device.
        notes: assumptions that were made, a line each.
    """

    name: str
    images: ImageKind
    stages: tuple[StageEstimate, ...]
    device: torch.device
    precision: str
    free_memory: int
    notes: tuple[str, ...]

    @property
    def hours(self) -> float | None:
        """Hours of all stages together; None where no time was measured."""
        hours = [stage.hours for stage in self.stages]
        return None if None in hours else sum(h for h in hours if h is not None)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for reports."""
        values = plain(self) | {"device": str(self.device), "hours": self.hours}
        for stage, own in zip(self.stages, values["stages"], strict=True):
            own |= {"parameters": stage.parameters, "images": stage.images, "hours": stage.hours}
            own["images_per_second"] = stage.images_per_second
        return values

    def __str__(self) -> str:
        return _as_text(self)

    def needed(self, stage: StageEstimate) -> int:
        """Bytes of the device that a stage takes: on a CPU with the copy that a checkpoint is written from.

        Args:
            stage: stage.
        """
        copy = stage.memory.copy if self.device.type == "cpu" else 0
        return stage.memory.total(stage.micro_batch) + copy

    def __repr__(self) -> str:
        hours = "" if self.hours is None else f", {self.hours:.2g} hours"
        return f"Estimate({self.name}: {', '.join(stage.name for stage in self.stages)}{hours} on {self.device})"

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(str(self))}</pre>"


def _as_text(estimate: Estimate) -> str:
    """The table and its notes."""
    file = io.StringIO()
    width = max(60, shutil.get_terminal_size((80, 24)).columns)
    console = Console(file=file, highlight=False, width=width, color_system=None)
    images = estimate.images
    colours = _COLOURS.get(images.channels, f"{images.channels} channels")
    classes = f"{images.classes:,} classes" if images.classes else "no classes"
    origin = f"{images.size}x{images.size} ({images.origin.strip('`')})"
    console.print(Text(f"{estimate.name}: images of {origin}, {colours}, {classes}"))
    console.print(Text(f"on {device_name(estimate.device)}, precision {estimate.precision}"))
    table = Table(box=box.SIMPLE, show_edge=False, header_style="bold", pad_edge=False)
    table.add_column("")
    for stage in estimate.stages:
        table.add_column(stage.name)
    for number, (title, rows) in enumerate(_sections(estimate)):
        if number:
            table.add_section()
        table.add_row(Text(title, style="bold"))
        for label, cells in rows:
            table.add_row(Text(f"  {label}"), *map(Text, cells))
    console.print(table)
    console.print()
    if estimate.hours is not None:
        console.print(Text(f"in all {in_hours(estimate.hours)} on this device\n", style="bold"))
    for note in _notes(estimate):
        console.print(Text(note))
    return file.getvalue().rstrip("\n")


Rows = list[tuple[str, list[str]]]


def _sections(estimate: Estimate) -> list[tuple[str, Rows]]:
    stages = estimate.stages

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
    for part in sorted({part for s in stages for part in s.flops.parts}, key=_order):
        flops.append(row(part, lambda s, part=part: in_flops(s.flops.parts[part]) if part in s.flops.parts else "-"))
    flops.append(row("one training image", lambda s: in_flops(s.flops.total)))
    memory: Rows = []
    for part in dict.fromkeys(part for s in stages for part in s.memory.parts):
        memory.append(
            row(_memory_label(part), lambda s, part=part: _memory_cell(s, part) if part in s.memory.parts else "-")
        )
    memory.append(row("activations", lambda s: in_bytes(s.memory.activations(s.micro_batch))))
    memory.append(row("  of one image", lambda s: in_bytes(s.memory.activations(1))))
    copy = row("copy for a checkpoint", lambda s: in_bytes(s.memory.copy))
    on_cpu = estimate.device.type == "cpu"
    memory += [copy] * on_cpu
    memory.append(row("total", lambda s: in_bytes(estimate.needed(s))))
    sections = [("training", training), ("FLOPs an image", flops), ("memory", memory)]
    if not on_cpu:
        sections.append(("main memory", [copy]))
    if all(s.measured is not None for s in stages):
        time: Rows = [
            row("measured", _measured),
            row("images a second", lambda s: three_digits(s.images_per_second or 0)),
            row("a step of the batch", lambda s: in_seconds(s.config.batch_size / (s.images_per_second or math.inf))),
            row("the stage", lambda s: in_hours(s.hours or 0)),
        ]
        sections.append(("time", time))
    return sections


def _order(part: str) -> float:
    """Place of a part of a step; a method's own stand before the rest of the loss."""
    return FLOPS_PARTS.index(part) if part in FLOPS_PARTS else FLOPS_PARTS.index("the rest of the loss") - 0.5


def _batch(stage: StageEstimate) -> str:
    parts = stage.config.accumulation
    return f"{stage.config.batch_size:,}" + (f" ({parts} x {stage.micro_batch:,})" if parts > 1 else "")


def _memory_label(part: str) -> str:
    networks = {name: f"{name} network" for name in ("target", "teacher", "critic")}
    return {OPTIMIZER: "optimizer, its moments", **networks}.get(part, part)


def _memory_cell(stage: StageEstimate, part: str) -> str:
    text = in_bytes(stage.memory.parts[part])
    count = len(stage.config.ema_decays) + len(stage.config.ema_lengths)
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
        needed, free = estimate.needed(stage), estimate.free_memory
        if needed <= free:
            continue
        text = f"{stage.name}: {in_bytes(needed)} is more than the {in_bytes(free)} that are free here"
        accumulation = stage.accumulation_within(free - needed + stage.memory.total(stage.micro_batch))
        key = f"`{stage.name}.accumulation` {accumulation}"
        text += f"; {key} would fit" if accumulation else ", whatever the accumulation"
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
