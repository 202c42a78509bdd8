"""The tasks of editing: one row a task in `TASKS`, one file a task or a close family.

A row is data: reading the table imports no task, and no torch. A task's class has the rest: its options are the fields
of its signature, and it reads the inputs, builds the method and has the default noise levels (see
`unistep.editing.tasks.task`).
"""

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from unistep.errors import UserError
from unistep.text import nearest

if TYPE_CHECKING:
    from unistep.editing.levels import DefaultLevels
    from unistep.editing.tasks.task import EditTask

Kind = Literal["measurement", "noise", "path"]


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Args:
        name: name, as `unistep.edit` takes it.
        text: description of the task in a few words, for the help.
        kind: start of an edit: "measurement" for an operator's measurement of the image, "noise" for the image with
            added noise, "path" for an interpolation between noises.
        place: module in this package and class in it, as "inpaint:Inpaint".
    """

    name: str
    text: str
    kind: Kind
    place: str

    @property
    def implementation(self) -> "type[EditTask]":
        """The task's class; imports it."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(f"unistep.editing.tasks.{module}"), name)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that the task takes."""
        return tuple(field.name for field in dataclasses.fields(self.implementation) if field.init)

    @property
    def default(self) -> "DefaultLevels":
        """Noise levels of the task where none are given."""
        return self.implementation.default


TASKS: Mapping[str, Task] = {
    row.name: row
    for row in (
        Task("inpaint", "paint what a mask marks", "measurement", "inpaint:Inpaint"),
        Task("outpaint", "paint around the image", "measurement", "outpaint:Outpaint"),
        Task("colorize", "colour a grey image", "measurement", "colorize:Colorize"),
        Task("upscale", "more pixels", "measurement", "upscale:Upscale"),
        Task("deblur", "undo a Gaussian blur", "measurement", "deblur:Deblur"),
        Task("compressed-sensing", "from few random numbers", "measurement", "compressed_sensing:CompressedSensing"),
        Task("denoise", "remove Gaussian noise", "noise", "denoise:Denoise"),
        Task("jpeg", "remove the artefacts of JPEG", "noise", "jpeg:Jpeg"),
        Task("strokes", "a picture from coarse strokes", "noise", "sdedit:Strokes"),
        Task("vary", "variations of an image", "noise", "sdedit:Vary"),
        Task("interpolate", "from one image or seed to another", "path", "paths:Interpolate"),
        Task("walk", "from seed to seed", "path", "paths:Walk"),
    )
}

MEASUREMENT_TASKS = tuple(name for name, row in TASKS.items() if row.kind == "measurement")
"""Tasks that keep a measurement; their noise levels can be searched for."""

_FORMER_NAMES = {"sense": "compressed-sensing"}


def task_named(name: str) -> Task:
    """Returns the row of a name.

    Raises:
        UserError: there is none.
    """
    if name in TASKS:
        return TASKS[name]
    near = _FORMER_NAMES.get(name) or nearest(name, TASKS)
    hint = f"did you mean {near}?" if near else f"give one of {', '.join(TASKS)}"
    raise UserError(f"{name or repr('')} is unknown", hint, field="task")


def make_task(name: str, given: Mapping[str, Any]) -> "EditTask":
    """Returns a task with its options.

    Args:
        name: name of the task.
        given: options by name; those that the task does not take must be left out.

    Raises:
        UserError: the task is unknown, takes no such option, or refuses its value.
    """
    row = task_named(name)
    check_options(name, given)
    return row.implementation(**given)


def check_options(name: str, given: Iterable[str]) -> None:
    """Refuses options that a task does not take.

    Args:
        name: name of the task.
        given: names of options.

    Raises:
        UserError: an option is for other tasks; they are named.
    """
    options = TASKS[name].options
    for option in given:
        if option not in options:
            takers = ", ".join(tasks_with(option)) or "none"
            raise UserError(f"`{option}` is for {takers}, not for {name}", "leave it out")


def tasks_with(option: str) -> list[str]:
    """Returns the names of the tasks that take an option."""
    return [row.name for row in TASKS.values() if option in row.options]


def measurement_options(name: str) -> tuple[str, ...]:
    """Returns the names of the options that decide what a task measures, as `mask` and `factor`."""
    from unistep.editing.tasks.measurement import DegradableTask

    common = {field.name for field in dataclasses.fields(DegradableTask)}
    return tuple(option for option in TASKS[name].options if option not in common)


def task_of(operator: str) -> Task:
    """Returns the task of an operator by the operator's name; inpaint for one that belongs to none."""
    from unistep.editing.tasks.measurement import MeasurementTask

    for row in TASKS.values():
        implementation = row.implementation if row.kind == "measurement" else None
        if implementation and issubclass(implementation, MeasurementTask):
            if operator.startswith(implementation.operator_name):
                return row
    return TASKS["inpaint"]
