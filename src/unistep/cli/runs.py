"""`unistep runs`: the runs below a folder, and how far they are."""

from json import dumps

from unistep.cli.command import run_command
from unistep.text import shown
from unistep.watching.listing import RunListing
from unistep.workflows.runs_list import runs

_RIGHT = ("step", "last", "changed")
_ROOM = 140  # columns of a terminal that descriptions need beside the rest


def run(arguments: list[str]) -> None:
    """Parses, reads the runs, and prints."""
    run_command(
        arguments,
        runs,
        _show,
        usage="unistep runs [FOLDER] [options]",
        positionals=("folder",),
        switches={"json": "print JSON instead of a table"},
    )


def _show(listing: RunListing, json: bool) -> None:
    if json:
        print(dumps(listing.to_dict(), indent=2))
        return
    if not listing.runs:
        print(f"no runs in {shown(listing.folder)}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, rows = Console(), listing.rows()
    kept = [i for i, name in enumerate(listing.columns) if any(row[i] for row in rows)]
    problems = [f"{row[0]}: {row[-1]}" for row, run in zip(rows, listing.runs, strict=True) if run.state == "damaged"]
    if console.width < _ROOM:
        kept = [i for i in kept if listing.columns[i] != "description"]
    table = Table()
    for i in kept:
        name = listing.columns[i]
        alone = name in ("step", "changed", "description")
        table.add_column(name, justify="right" if name in _RIGHT else "left", no_wrap=alone)
    for row in rows:
        table.add_row(*(Text(row[i]) for i in kept))
    console.print(table)
    for line in problems:
        console.print(Text(line), soft_wrap=True)
