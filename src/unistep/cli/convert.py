"""`unistep convert`: a model of any format as a model folder, or as an OpenAI .pt."""

from unistep.cli.command import run_command
from unistep.text import shown
from unistep.workflows.convert import Conversion, convert


def run(arguments: list[str]) -> None:
    """Parses, converts, and prints what was written."""
    run_command(
        arguments,
        convert,
        _show,
        usage="unistep convert SOURCE TARGET [options]",
        positionals=("source", "target"),
        opens="source",
    )


def _show(made: Conversion) -> None:
    for name, text in made.rows():
        print(shown(f"{name}: {text}"))
