"""`unistep runs`: the runs below a folder, and how far they are."""

from json import dumps

from unistep.cli.command import run_command
from unistep.text import shown
from unistep.watching.listing import RunListing
from unistep.workflows.runs_list import runs

_RIGHT = ("step", "last", "changed")
_WHOLE = ("stage", "step", "last", "changed")  # columns that are never broken into lines
_GAP, _LEAST_ROOM = 2, 24  # between columns; for a description, of which the beginning is enough


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
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, rows = Console(), listing.rows()
    kept = [i for i, name in enumerate(listing.columns) if name != "description" and any(row[i] for row in rows)]
    widths = [max(len(listing.columns[i]), *(len(row[i]) for row in rows)) for i in kept]
    room = console.width - sum(widths) - _GAP * (len(kept) + 1)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i in kept:
        name = listing.columns[i]
        table.add_column(name, justify="right" if name in _RIGHT else "left", no_wrap=name in _WHOLE, overflow="fold")
    if room >= _LEAST_ROOM:
        table.add_column("description", no_wrap=True, max_width=room)
    for row in rows:
        table.add_row(*(Text(row[i]) for i in kept), *([Text(row[-1])] if room >= _LEAST_ROOM else []))
    console.print(table)
    for row, run in zip(rows, listing.runs, strict=True):
        if run.state == "damaged":
            console.print(Text(f"{row[0]}: {row[-1]}"), soft_wrap=True)
