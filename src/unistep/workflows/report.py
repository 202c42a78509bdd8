"""`unistep.report`: a page about a run, or about several side by side."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unistep.arguments import plain_arguments
from unistep.checks import check_file, check_path, user_path
from unistep.errors import UserError
from unistep.text import html_table

_MOST_RUNS = 24


@dataclass(frozen=True, repr=False)
class RunReport:
    """A page about runs that was written.

    Args:
        path: the page.
        runs: folders of the runs.
        num_bytes: size of the page.
    """

    path: Path
    runs: tuple[Path, ...]
    num_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        return {"path": str(self.path), "runs": [str(run) for run in self.runs], "bytes": self.num_bytes}

    def rows(self) -> list[tuple[str, str]]:
        """Returns name and value of each fact."""
        return [("report", str(self.path)), ("runs", "\n".join(map(str, self.runs)))]

    def __repr__(self) -> str:
        return f"RunReport({self.path}: {', '.join(map(str, self.runs))})"

    def _repr_html_(self) -> str:
        return html_table("report", self.rows())


@plain_arguments(empty=["output"])
def report(
    runs: str | os.PathLike[str] | Sequence[str] | Sequence[os.PathLike[str]],
    *,
    output: str | os.PathLike[str] = "report.html",
) -> RunReport:
    """Writes a page about a run, or about several side by side: one HTML file that needs nothing else.

    Of one run it shows curves over the images (distance, loss, gradient norm, learning rate, speed), grids of samples
    over time, cost and settings; of several the curves in one chart each, the last grids side by side, the settings in
    which they differ, and their costs. Runs may be under way; nothing in their folders is written.

    Args:
        runs: run directory, or several.
        output: page to be written, a .html.

    Returns:
        Path and size of the page.

    Raises:
        UserError: a folder is no run or is damaged, there are more than 24, or the page cannot be written.

    Example:
        >>> import pathlib, tempfile, unistep
        >>> from unistep.config.recipes import recipes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "config.yaml").write_text(recipes("mnist-quick"))  # as a run begins
        ...     page = unistep.report(folder, output=f"{folder}/report.html")
        ...     page.path.read_text()[:15]
        '<!doctype html>'
    """
    given = [runs] if isinstance(runs, str | os.PathLike) else runs
    if not isinstance(given, list | tuple):
        raise UserError(f"a {type(runs).__name__} must be a run directory, or a list of them", field="runs")
    for one in given:
        check_path("runs", one, "give run directories")
        if one is None or not os.fspath(one).strip():
            raise UserError("is empty; give a run directory", field="runs")
    if not given:
        raise UserError("is empty; give a run directory", field="runs")
    if len(given) > _MOST_RUNS:
        raise UserError(f"are {len(given)}; a page shows {_MOST_RUNS} at most", field="runs")
    check_file("output", output, (".html", ".htm"))
    from unistep.files import whole_file, write_error
    from unistep.watching.page.page import page
    from unistep.watching.record import read_record

    folders, path = [user_path(one) for one in given], user_path(output)
    records = []
    for folder, name in zip(folders, _names(folders), strict=True):
        record = read_record(folder, name)
        if not record.stages:
            named = record.problem if str(folder) in record.problem else f"{folder}: {record.problem}"
            raise UserError(named, "" if "; " in named else "give the folder of a run")
        records.append(record)
    text = page(records, datetime.datetime.now(datetime.UTC)).encode("utf-8", "backslashreplace")
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(text)
    except OSError as error:
        raise write_error(path, error, "choose another `output`") from None
    return RunReport(path, tuple(folders), len(text))


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ for all runs."""
    parts = [folder.absolute().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = [str(Path(*part[-count:])) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
