"""A plan: the numbers of each stage, and a table of them in plain text."""

from dataclasses import dataclass
from typing import Any

from unistep.text import html_table
from unistep.workflows.estimate.scaling import COPY, StagePlan
from unistep.workflows.estimate.units import in_bytes, in_hours, in_seconds, three_digits


@dataclass(frozen=True, repr=False)
class Plan:
    """A run on several devices; as text it is a table.

    Args:
        name: name of the recipe.
        device: name of the device.
        nodes: number of machines.
        gpus_per_node: number of devices of each.
        engine: way in which they share the networks.
        stages: the stages.
        device_memory: bytes of a device; None for a CPU.
        price: price of a device for an hour; None where none was given.
        notes: assumptions, a line each.
    """

    name: str
    device: str
    nodes: int
    gpus_per_node: int
    engine: str
    stages: tuple[StagePlan, ...]
    device_memory: int | None
    price: float | None
    notes: tuple[str, ...]

    @property
    def hours(self) -> float:
        """Hours of all stages."""
        return sum(stage.hours for stage in self.stages)

    @property
    def cost(self) -> float | None:
        """Price of all devices for that time; None where no price was given."""
        return None if self.price is None else self.price * self.hours * self.nodes * self.gpus_per_node

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        stages = [
            vars(s) | {"images_per_second": s.images_per_second, "hours": s.hours, "total": sum(s.memory.values())}
            for s in self.stages
        ]
        return vars(self) | {"stages": stages, "notes": list(self.notes), "hours": self.hours, "cost": self.cost}

    def rows(self) -> list[tuple[str, str]]:
        """Returns name and value of each line of a table."""
        count = self.nodes * self.gpus_per_node
        where = f"{self.nodes:,} x {self.gpus_per_node:,} {self.device}, {self.engine if count > 1 else 'one process'}"
        rows = [(self.name, where)]
        for stage in self.stages:
            parts = ", ".join(f"{name} {in_bytes(size)}" for name, size in stage.memory.items())
            total = sum(stage.memory.values())
            room = "" if self.device_memory is None else f" of {in_bytes(self.device_memory)}"
            times = ", ".join(f"{name} {in_seconds(value)}" for name, value in stage.step_seconds.items() if value)
            rows += [
                (stage.name, f"batch {stage.batch:,}, {stage.micro_batch:,} images at once on a device"),
                ("  memory", f"{in_bytes(total)}{room}: {parts}"),
                *([("  main memory", _main_memory(stage, self.engine, count))] if stage.main_memory else []),
                ("  sent in a step", f"{in_bytes(stage.exchange)} by each device"),
                ("  a step", f"{in_seconds(sum(stage.step_seconds.values()))}: {times}"),
                ("  images a second", three_digits(stage.images_per_second)),
                ("  the stage", in_hours(stage.hours)),
            ]
        cost = "" if self.cost is None else f", {self.cost:,.0f} at {self.price:g} an hour and device"
        return [*rows, ("in all", f"{in_hours(self.hours)}{cost}")]

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {text}" for name, text in rows]
        return "\n".join([*lines, *(f"Note: {note}." for note in self.notes)])

    def __repr__(self) -> str:
        count = self.nodes * self.gpus_per_node
        return f"Plan({self.name}: {self.hours:.2g} hours on {count:,} x {self.device})"

    def _repr_html_(self) -> str:
        return html_table("plan", self.rows())


def _main_memory(stage: StagePlan, engine: str, processes: int) -> str:
    who = "each process" if engine == "fsdp" and processes > 1 else "the first process"
    return f"{in_bytes(stage.main_memory)} of {who}: {COPY}"
