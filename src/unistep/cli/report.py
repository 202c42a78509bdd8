"""`unistep report`: a page about a run, or about several side by side."""

from unistep.cli.command import run_command
from unistep.text import shown
from unistep.workflows.report import RunReport, report


def run(arguments: list[str]) -> None:
    """Parses, writes the page, and prints its path."""
    run_command(arguments, report, _show, usage="unistep report RUN [RUN ...] [options]", positionals=("runs",))


def _show(made: RunReport) -> None:
    print(f"{shown(made.path)}: {len(made.runs)} run{'s' * (len(made.runs) > 1)}, {made.num_bytes / 1e6:.2f} MB")
