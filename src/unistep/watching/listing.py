"""The runs below a folder, as a table."""

import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unistep.config.recipes import CONFIG
from unistep.errors import UserError
from unistep.formats.model_folder.files import INDEX
from unistep.text import html_columns, nearest_path, shown
from unistep.watching.record import RunRecord, read_record

_MOST_DEPTH = 6
_MOST_FOLDERS = 20_000


@dataclass(frozen=True, repr=False)
class RunListing:
    """The runs below a folder.

    Args:
        folder: folder.
        runs: runs, those that changed last first; then what is directly in the folder and no run.
    """

    folder: Path
    runs: tuple[RunRecord, ...]

    columns = ("run", "state", "stage", "step", "speed", "best", "last", "changed", "description")

    def __iter__(self) -> Iterator[RunRecord]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, name: str) -> RunRecord:
        """The run of a name.

        Raises:
            KeyError: there is none.
        """
        found = {run.name: run for run in self.runs}
        return found[name]

    def rows(self) -> list[tuple[str, ...]]:
        """Returns a row for each run, its values as text in the order of `columns`."""
        now = datetime.datetime.now(datetime.UTC)
        return [tuple(map(shown, _row(run, now))) for run in self.runs]

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        return {"folder": str(self.folder), "runs": [run.to_dict() for run in self.runs]}

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for run in self.runs:
            counts[run.state] = counts.get(run.state, 0) + 1
        said = ", ".join(f"{count} {state}" for state, count in counts.items())
        return f"RunListing({self.folder}: {said or 'no runs'})"

    def _repr_html_(self) -> str:
        return html_columns(self.columns, self.rows())


def list_runs(folder: Path) -> RunListing:
    """The runs below a folder, or the run that it is.

    Args:
        folder: folder; links in it are followed, hidden folders left out.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        near = nearest_path(folder)
        hint = f"; did you mean {near}?" if near is not None and near.is_dir() else "; give one that holds runs"
        raise UserError(f"{folder} {'is no folder' if os.path.lexists(folder) else 'does not exist'}{hint}")
    if os.path.lexists(folder / CONFIG):
        return RunListing(folder, (read_record(folder, brief=True),))
    try:
        children = _folders(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}", "make it readable") from None
    found, seen = [], {os.path.realpath(folder)}
    for child in children:
        runs = list(_runs(child, seen, 1))
        found += [read_record(path, str(path.relative_to(folder)), brief=True) for path in runs]
        if not runs:
            found.append(RunRecord(child, child.name, "no run", problem=_reason(child)))
    times = {run.folder: run.changed for run in found}
    never = datetime.datetime.fromtimestamp(0, datetime.UTC)
    found.sort(key=lambda run: (run.state != "no run", times[run.folder] or never), reverse=True)
    return RunListing(folder, tuple(found))


def _runs(folder: Path, seen: set[str], depth: int) -> Iterator[Path]:
    """The runs at a folder and below it; within a run there are no others."""
    place = os.path.realpath(folder)
    if place in seen or len(seen) >= _MOST_FOLDERS:
        return
    seen.add(place)
    if os.path.lexists(folder / CONFIG):
        yield folder
    elif depth < _MOST_DEPTH:
        try:
            children = _folders(folder)
        except OSError:
            return
        for child in children:
            yield from _runs(child, seen, depth + 1)


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name.

    Raises:
        OSError: it cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _reason(folder: Path) -> str:
    try:
        _folders(folder)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if (folder / INDEX).is_file():
        return "a model, which `unistep inspect` describes"
    return f"no {CONFIG} in it, nor below it"


def _row(run: RunRecord, now: datetime.datetime) -> tuple[str, ...]:
    stage, measured, changed = run.stage, run.measured, run.changed
    if stage is None:
        return run.name, run.state, "", "", "", "", "", ago(changed, now), run.problem
    steps = f"{run.done(stage):,}/{'?' if stage.steps is None else f'{stage.steps:,}'}"
    if (left := run.seconds_left) is not None:  # of the stage, not of the run
        steps += f", {duration(left)} left"
    best, last = (measured.best, measured.last) if measured else (None, None)
    metric = f"{measured.metric} " if measured else ""
    return (
        run.name,
        run.state,
        stage.name,
        steps,
        speed(stage.images_per_second, stage.seconds_per_step),
        "" if best is None else f"{metric}{best.value:.4g}",
        "" if last is None else f"{last.value:.4g}",
        ago(changed, now),
        run.problem or run.description or run.methods,
    )


def speed(images_per_second: float | None, seconds_per_step: float | None) -> str:
    """A speed as text; of steps that take longer than a second also their time."""
    if images_per_second is None:
        return ""
    text = f"{images_per_second:,.3g} images/s" if images_per_second < 100 else f"{images_per_second:,.0f} images/s"
    slow = seconds_per_step is not None and seconds_per_step > 1
    return f"{text}, {seconds_per_step:,.3g} s/step" if slow else text


def ago(time: datetime.datetime | None, now: datetime.datetime) -> str:
    """Time between a moment and now, as `3 min ago`; empty where there is no moment."""
    return "" if time is None else f"{duration(max((now - time).total_seconds(), 0))} ago"


def duration(seconds: float) -> str:
    """A time in the largest unit of which there are two or more: 95 s, 12 min, 30 h, 5 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
