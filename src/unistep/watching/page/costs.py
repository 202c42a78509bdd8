"""Costs of runs: time, images and speed of every stage, and the machines where they are recorded."""

from collections.abc import Sequence

from unistep.documents import read_json
from unistep.errors import UserError
from unistep.watching.listing import duration, speed
from unistep.watching.page.markup import escaped, number, table
from unistep.watching.record import RunRecord, StageRecord

_VISITS, _MOST_BYTES = "visits.json", 4_000_000
_MEMORY = "memory"  # in the names of numbers in a log


def costs(runs: Sequence[RunRecord], heads: Sequence[str]) -> str:
    """A table with a row for each stage that has begun, and one for all stages of a run.

    Args:
        runs: runs.
        heads: name of each, as markup.
    """
    rows: list[tuple[str, ...]] = []
    memory = any(_memory(stage) for run in runs for stage in run.stages)
    for run, head in zip(runs, heads, strict=True):
        begun = [stage for stage in run.stages if stage.begun]
        for stage in begun:
            row = (head, escaped(stage.name), escaped(stage.method), *_of_stage(run, stage))
            rows.append((*row, *([escaped(_memory(stage) or "")] if memory else [])))
        if len(begun) > 1:
            seconds = sum(stage.seconds or 0 for stage in begun)
            images = sum(images_of(run, stage) or 0 for stage in begun)
            row = (head, "all", "", "", f"{images:,.0f}", time(seconds), "")
            rows.append((*row, *([""] if memory else [])))
    if not rows:
        return "<p>Nothing was trained yet.</p>"
    columns = ["run", "stage", "method", "steps", "images", "time", "speed"]
    return table([*columns, "memory"] if memory else columns, rows, kind="numbers")


def visits(run: RunRecord) -> str:
    """The trainings that a run goes on from, where it began from exported weights; empty where it did not."""
    try:
        found = read_json(run.folder / _VISITS, "", most_bytes=_MOST_BYTES)["visits"]
        rows = [
            tuple(
                escaped("" if visit[key] is None else visit[key]) for key in ("date", "device", "minutes", "distance")
            )
            for visit in found
        ]
    except (UserError, KeyError, TypeError):
        return ""
    return table(["date", "device", "minutes", "distance"], rows, kind="numbers") if rows else ""


def images_of(run: RunRecord, stage: StageRecord) -> float | None:
    """Number of images that a stage was trained on; None where it is unknown."""
    logged = stage.log.last("images")
    return logged if logged is not None else stage.batch_size and float(run.done(stage) * stage.batch_size)


def time(seconds: float | None) -> str:
    """A time for people; of an hour and more also in hours."""
    if seconds is None:
        return ""
    return f"{seconds / 3600:,.2f} h" if seconds >= 3600 else duration(seconds)


def _of_stage(run: RunRecord, stage: StageRecord) -> tuple[str, ...]:
    steps = "?" if stage.steps is None else f"{stage.steps:,}"
    images, seconds = images_of(run, stage), stage.seconds
    mean = images / seconds if images and seconds else None
    per_step = stage.batch_size / mean if mean and stage.batch_size else None
    shown = "" if images is None else f"{images:,.0f}"
    return f"{run.done(stage):,} of {steps}", shown, time(seconds), speed(mean, per_step)


def _memory(stage: StageRecord) -> str | None:
    """The largest of each number about memory in a log."""
    names = [name for name in stage.log.names() if _MEMORY in name]
    most = [f"{name} {number(max(value for _, value in stage.log.curve(name)))}" for name in names]
    return ", ".join(most) or None
