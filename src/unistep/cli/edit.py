"""`unistep edit`: images edited with any consistency model."""

import functools
from typing import TYPE_CHECKING, Any

from unistep.cli.command import run_command
from unistep.editing.tasks import TASKS
from unistep.errors import UserError
from unistep.text import shown
from unistep.workflows.edit import edit

if TYPE_CHECKING:
    from unistep.editing.result import EditResult


def run(arguments: list[str]) -> None:
    """Parses, edits, and prints where the results are."""
    width = max(map(len, TASKS))
    run_command(
        arguments,
        _edit,
        _show,
        usage="unistep edit TASK --input IMAGES --output OUT [options]",
        positionals=("task",),
        opens="model",
        defaults={"model": None, "image": None},
        flags={"image": "input"},
        several=("image",),
        epilog="tasks:\n" + "\n".join(f"  {row.name:<{width}}  {row.text}" for row in TASKS.values()),
    )


@functools.wraps(edit)
def _edit(**options: Any) -> "EditResult":
    if options["output"] is None and options["sheet"] is None:
        raise UserError("is missing", "give a .png or a folder; a .png, .gif or .mp4 for a path", field="output")
    return edit(**options)


def _show(result: "EditResult") -> None:
    places = ", ".join(shown(place) for place in (result.output, result.sheet) if place is not None)
    cost = f"{result.evaluations} evaluation{'s' * (result.evaluations > 1)} each"
    if result.frames is not None:
        print(f"{len(result.frames)} frames, {cost}: {places}")
        return
    count, candidates = len(result), len(result[0].candidates)
    several = f"{candidates} candidates each, " if candidates > 1 else ""
    guessed = f" and {result.guesses} to guess the class" if result.guesses else ""
    print(f"{count} image{'s' * (count > 1)}, {several}{cost}{guessed}: {places}")
    if result.psnr is not None:
        print(
            f"PSNR against the input: {result.psnr:.2f} dB; of the measurement alone: {result.measurement_psnr:.2f} dB"
        )
