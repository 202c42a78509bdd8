"""`unistep inspect`: a report on a model of any format, without the values of its weights."""

from json import dumps
from typing import TYPE_CHECKING

from unistep.cli.command import run_command
from unistep.text import shown
from unistep.workflows.inspect import inspect

if TYPE_CHECKING:
    from unistep.formats.describe import ModelReport


def run(arguments: list[str]) -> None:
    """Parses, opens the model without its weights, and prints."""
    run_command(
        arguments,
        inspect,
        _show,
        usage="unistep inspect [MODEL] [options]",
        positionals=("model",),
        opens="model",
        switches={"json": "print JSON instead of a table"},
    )


def _show(report: "ModelReport", json: bool) -> None:
    if json:
        print(dumps(report.to_dict(), indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(shown(report.path)), show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in report.rows():
        table.add_row(name, Text("\n".join(map(shown, value.split("\n")))))
    Console().print(table)
