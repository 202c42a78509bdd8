"""`unistep data`: a report on a dataset, its packing, and the fetching of published ones."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from unistep.cli.command import run_command
from unistep.errors import UserError
from unistep.text import nearest, shown
from unistep.workflows.fetch import FetchedDataset, fetch_dataset
from unistep.workflows.inspect import inspect_dataset
from unistep.workflows.pack import PackedDataset, pack_dataset

if TYPE_CHECKING:
    from unistep.data.inspect import DatasetReport

_USAGES = {
    "fetch": "unistep data fetch NAME [options]",
    "inspect": "unistep data inspect PATH [options]",
    "pack": "unistep data pack SOURCE OUTPUT [options]",
}


def run(arguments: list[str]) -> None:
    """Parses, calls the command's function, and prints its result.

    Args:
        arguments: words after `unistep data`.

    Raises:
        UserError: no command or an unknown one, a dataset that cannot be read, or a broken image in it.
    """
    commands: dict[str, Callable[[list[str], str], None]] = {"fetch": _fetch, "inspect": _inspect, "pack": _pack}
    if not arguments:
        raise UserError(f"data needs a command: {' | '.join(_USAGES.values())}")
    name, rest = arguments[0], arguments[1:]
    if name in ("-h", "--help"):
        print("\n       ".join([f"usage: {next(iter(_USAGES.values()))}", *list(_USAGES.values())[1:]]))
        return
    if name not in commands:
        near = nearest(name, commands) or "inspect"
        raise UserError(f"unknown command data {name!r}; did you mean data {near}?")
    commands[name](rest, _USAGES[name])


def _fetch(arguments: list[str], usage: str) -> None:
    run_command(arguments, fetch_dataset, _show_rows, usage=usage, positionals=("name",))


def _inspect(arguments: list[str], usage: str) -> None:
    run_command(
        arguments,
        inspect_dataset,
        _show_report,
        usage=usage,
        positionals=("path",),
        switches={"skip_bad": "count and list unreadable images without an error"},
    )


def _pack(arguments: list[str], usage: str) -> None:
    run_command(arguments, pack_dataset, _show_rows, usage=usage, positionals=("source", "output"))


def _show_report(report: "DatasetReport", skip_bad: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

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


def _show_rows(made: FetchedDataset | PackedDataset) -> None:
    for name, text in made.rows():
        print(shown(f"{name}: {text}"))
