"""`unistep ema`: the model of a run with another average of its weights."""

from unistep.cli.command import run_command
from unistep.text import shown
from unistep.workflows.ema import AveragedModel, ema


def run(arguments: list[str]) -> None:
    """Parses, averages, and prints what was written."""
    run_command(arguments, ema, _show, usage="unistep ema RUN OUT [options]", positionals=("run", "out"))


def _show(made: AveragedModel) -> None:
    for name, text in made.rows():
        print(shown(f"{name}: {text}"))
    if made.plot is not None:
        print(shown(f"drawn: {made.plot}"))
