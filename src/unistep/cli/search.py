"""`unistep search`: the noise levels of a consistency model, or of an edit, that make a metric best."""

import functools
import shlex
from typing import TYPE_CHECKING, Any

from unistep.cli.command import run_command
from unistep.searching.table import FULL_REFERENCE_METRICS, SAMPLE_METRICS
from unistep.text import shown
from unistep.workflows.models import ModelSource
from unistep.workflows.search import search

if TYPE_CHECKING:
    from unistep.searching.result import SearchResult


def run(arguments: list[str]) -> None:
    """Parses, searches, and prints the table and how to use what was found."""
    metrics = [*SAMPLE_METRICS.values(), *FULL_REFERENCE_METRICS.values()]
    width = max(len(row.name) for row in metrics)
    run_command(
        arguments,
        _search,
        _show,
        usage="unistep search [MODEL] --reference DATA|STATISTICS [options]\n"
        "unistep search [MODEL] --task TASK --images DATA [options]",
        positionals=("model",),
        opens="model",
        defaults={"output": "search"},
        epilog="metrics:\n" + "\n".join(f"  {row.name:{width}}  {row.text}" for row in metrics),
    )


@functools.wraps(search)
def _search(**options: Any) -> "tuple[SearchResult, str | None]":
    """The result, and the name of the model as it was given."""
    model = options["model"]
    name = model.name if isinstance(model, ModelSource) else model
    return search(**options), None if name is None else str(name)


def _show(found: "tuple[SearchResult, str | None]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    result, model = found
    table = Table()
    for place, column in enumerate(result.columns):
        table.add_column(Text(column), justify="left" if place else "right", overflow="fold")
    for row in result.rows():
        if row[0] and table.row_count:
            table.add_section()
        table.add_row(*map(Text, row))
    console = Console()
    console.print(Text(shown(result.heading)), soft_wrap=True)
    console.print(table)
    print("all scores: {}; drawn: {}".format(*map(shown, result.files)))
    if result.kept_in is not None:
        for one in result.found:
            if one.steps not in result.kept:
                print(f"not written: for {one.steps} steps nothing better than now was found, on fresh images")
        if result.kept:
            listed = " and ".join(",".join(map(str, result[steps].timesteps)) for steps in result.kept)
            print(f"written: timesteps {listed} to {shown(result.kept_in)}")
    if result.task is not None:
        for steps in result:
            print(_edit_command(result, steps, model))


def _edit_command(result: "SearchResult", steps: int, model: str | None) -> str:
    """The command line that edits with what was found."""
    words = ["unistep", "edit", result.task or "", *([] if model is None else ["--model", model])]
    for name, value in result.options(steps).items():
        numbers = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in value] if isinstance(value, list) else []
        words += [f"--{name}", ",".join(numbers) if numbers else str(value)]
    return shlex.join(words)
