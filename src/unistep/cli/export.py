"""`unistep export`: a model as a program for other runtimes."""

from unistep.cli.command import run_command
from unistep.text import shown
from unistep.workflows.export import Exported, export


def run(arguments: list[str]) -> None:
    """Parses, exports, and prints what was written and how far it is from PyTorch."""
    run_command(
        arguments,
        export,
        _show,
        usage="unistep export MODEL OUT [options]",
        positionals=("model", "out"),
        opens="model",
    )


def _show(made: Exported) -> None:
    for name, text in made.rows():
        print(shown(f"{name}: {text}"))
    if made.comparisons:
        print(f"compared with PyTorch, in {made.runtime}:")
        print("\n".join(made.table()))
