"""`unistep demo`: the embedded models in one picture."""

from typing import TYPE_CHECKING

from unistep.cli.command import run_command
from unistep.workflows.demo import demo

if TYPE_CHECKING:
    from unistep.workflows.demo import Demo


def run(arguments: list[str]) -> None:
    """Parses, makes the picture, and prints what its panels cost."""
    run_command(arguments, demo, _show, usage="unistep demo [options]")


def _show(made: "Demo") -> None:
    from rich.console import Console
    from rich.table import Table

    for kind in dict.fromkeys(row.images for row in made.rows):
        table = Table("model", "evaluations", "seconds per image", title=f"{kind}, from the same noise")
        for row in made.rows:
            if row.images == kind:
                table.add_row(row.model, str(row.evaluations), f"{row.seconds:.4f}")
        Console().print(table)
    print(f"picture: {made.path.resolve()}\nnext: unistep train mnist-quick   trains one from scratch in minutes")
