"""`unistep evaluate`: metrics of images, or of the images of a model, against a reference."""

import os
from typing import TYPE_CHECKING

from unistep.cli.command import run_command
from unistep.metrics.features.table import FEATURES
from unistep.metrics.table import METRICS
from unistep.text import shown
from unistep.workflows.evaluate import evaluate

if TYPE_CHECKING:
    from unistep.metrics.report import Report


def run(arguments: list[str]) -> None:
    """Parses, evaluates, and prints the table."""
    run_command(
        arguments,
        evaluate,
        _show,
        usage="unistep evaluate [SAMPLES] --reference DATA|STATISTICS [options]",
        positionals=("samples",),
        opens="samples",
        defaults={"output": "metrics.json"},
        epilog=_epilog(),
    )


def _epilog() -> str:
    """The tables of what `--metrics` and `--features` take."""
    metrics = [(", ".join(filter(None, (m.name, m.group, m.alias))), m.text) for m in METRICS.values()]
    networks = [(row.shown, f"{row.text}; weights: {row.weights}") for row in FEATURES.values()]
    lines = ["metrics, with the names of their groups and those in the literature:", *_listed(metrics)]
    return "\n".join([*lines, "", "feature networks:", *_listed(networks)])


def _listed(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:{width}}  {text}" for name, text in rows]


def _show(report: "Report") -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("metric")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    table.add_column("better")
    for row in report.rows():
        table.add_row(*map(Text, row))
    console = Console()
    console.print(Text(shown(report.heading)), soft_wrap=True)
    console.print(table)
    print("all of it, with the settings: " + "; the pictures: ".join(map(shown, report.files)))
