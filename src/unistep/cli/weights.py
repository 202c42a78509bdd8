"""`unistep weights export`: the weights of a run in small parts."""

from unistep.cli.command import run_command
from unistep.errors import UserError
from unistep.text import shown
from unistep.workflows.export_weights import ExportedWeights, export_weights

_USAGE = "unistep weights export RUN OUT [options]"


def run(arguments: list[str]) -> None:
    """Parses, exports, and prints what was written.

    Args:
        arguments: words after `unistep weights`.

    Raises:
        UserError: no command or an unknown one, or weights that cannot be read or written.
    """
    if not arguments:
        raise UserError(f"weights needs a command: {_USAGE}")
    if arguments[0] == "export":
        arguments = arguments[1:]
    elif arguments[0] not in ("-h", "--help"):
        raise UserError(f"unknown command weights {arguments[0]!r}; did you mean weights export?")
    run_command(arguments, export_weights, _show, usage=_USAGE, positionals=("run", "out"))


def _show(made: ExportedWeights) -> None:
    for name, text in made.rows():
        print(shown(f"{name}: {text}"))
    print(f"train on with: unistep train --init-from {shown(made.path)}")
