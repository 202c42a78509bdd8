"""`unistep quantize`: a model in int8."""

from unistep.cli.command import run_command
from unistep.text import shown
from unistep.workflows.quantize import Quantization, quantize


def run(arguments: list[str]) -> None:
    """Parses, quantizes, and prints the quality."""
    run_command(
        arguments,
        quantize,
        _show,
        usage="unistep quantize MODEL OUTPUT [options]",
        positionals=("model", "output"),
        opens="model",
    )


def _show(made: Quantization) -> None:
    for name, text in made.rows():
        print(shown(f"{name}: {text}"))
