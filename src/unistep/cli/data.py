"""`unistep data inspect`: a report on a dataset."""

from typing import TYPE_CHECKING

from unistep.cli.command import run_command
from unistep.errors import UserError
from unistep.workflows.inspect import inspect_dataset

if TYPE_CHECKING:
    from unistep.data.inspect import DatasetReport

_USAGE = "unistep data inspect PATH [options]"


def run(arguments: list[str]) -> None:
    """Parses, reads the dataset, and prints a report on it.

    Args:
        arguments: words after `unistep data`.

    Raises:
        UserError: no command or an unknown one, a dataset that cannot be read, or a broken image in it.
    """
    if not arguments:
        raise UserError(f"data needs a command: {_USAGE}")
    if arguments[0] == "inspect":
        arguments = arguments[1:]
    elif arguments[0] not in ("-h", "--help"):
        raise UserError(f"unknown command data {arguments[0]!r}; did you mean data inspect?")
    run_command(
        arguments,
        inspect_dataset,
        _show,
        usage=_USAGE,
        positionals=("path",),
        switches={"skip_bad": "count and list unreadable images without an error"},
    )


def _show(report: "DatasetReport", skip_bad: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from unistep.text import shown

    table = Table(title=Text(shown(report.source)), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for name, value in report.rows():
        table.add_row(name, Text(value))
    console = Console()
    console.print(table)
    for line in report.remarks():
        console.print(Text(line))
    if report.bad and not skip_bad:
        name, reason = report.bad[0]
        raise UserError(f"{name}: {reason} ({len(report.bad)} bad in all); mend or remove it, or give `skip_bad`")
