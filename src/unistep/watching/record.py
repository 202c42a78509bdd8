"""The state of a run, from the files of its folder; nothing is written, and nothing large is read."""

import datetime
import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unistep.config.recipes import CONFIG, read_run
from unistep.config.run import check_stage_name
from unistep.config.seal import check_config
from unistep.errors import UserError
from unistep.formats.checkpoint_names import checkpoint_path, checkpoint_steps
from unistep.runtime.lock import at_work
from unistep.watching.log import StageLog, read_log

State = Literal["running", "finished", "interrupted", "damaged", "no run"]
"""State of a run: another process trains it, all stages have ended, neither, or its folder cannot be read as one."""

_EXPORTED = "index.json"  # of exported weights, beside a config
_MODEL = Path("model", "model_index.json")
_MOST_STEPS = 1 << 53
_RECENT_LINES = 10
_LATEST = 250_000_000_000  # the last times that Python has dates for, in seconds


@dataclass(frozen=True)
class Measured:
    """A measurement of a stage's model in training, lower is better.

    Args:
        step: number of steps done before it.
        value: number.
        low, high: ends of its 95% interval.
    """

    step: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class StageRecord:
    """A stage of a run.

    Args:
        name: name.
        folder: its folder.
        method: method by its name; empty where the config has none.
        steps: length in steps; None where the config does not hold it.
        batch_size: number of images a step; None where the config does not hold it.
        saved: number of steps in its newest checkpoint.
        ended: whether it has ended in a model.
        log: its log; that of a brief record has the last lines and the measurements alone.
    """

    name: str
    folder: Path
    method: str
    steps: int | None
    batch_size: int | None
    saved: int
    ended: bool
    log: StageLog

    @property
    def begun(self) -> bool:
        """Whether there is something of it."""
        return bool(self.saved or self.ended or self.log.lines)

    @property
    def seconds(self) -> float | None:
        """Time of its training up to its last line; None where the log does not hold it."""
        return self.log.last("seconds")

    @property
    def images_per_second(self) -> float | None:
        """Speed of its newest lines, their median; None where the log does not hold it."""
        recent = [speed for _, speed in self.log.curve("images_per_second")[-_RECENT_LINES:]]
        return statistics.median(recent) if recent else None

    @property
    def seconds_per_step(self) -> float | None:
        """Time of a step at that speed."""
        speed = self.images_per_second
        return self.batch_size / speed if speed and self.batch_size else None

    @property
    def metric(self) -> str | None:
        """Name of the newest measurement; None where nothing was measured."""
        return next(iter(self.log.measured()), None)

    def measurements(self, name: str) -> list[Measured]:
        """The measurements of a name, in their order."""
        keys = (name, f"{name}/low", f"{name}/high")
        return [
            Measured(step, *(values.get(key, values[name]) for key in keys))
            for step, values in self.log.lines
            if name in values
        ]

    @property
    def last(self) -> Measured | None:
        """The newest measurement."""
        return None if self.metric is None else self.measurements(self.metric)[-1]

    @property
    def best(self) -> Measured | None:
        """The lowest measurement, of equal ones the first."""
        return None if self.metric is None else min(self.measurements(self.metric), key=lambda one: one.value)


@dataclass(frozen=True)
class RunRecord:
    """A run, or a folder that is none.

    Args:
        folder: its folder.
        name: name in a list.
        state: state.
        values: its config as it stands in the file; empty where it cannot be read.
        stages: stages in their order.
        worker: facts that the process at work has written about itself; empty where there is none.
        problem: reason why it is damaged or no run; empty otherwise.
    """

    folder: Path
    name: str
    state: State
    values: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[StageRecord, ...] = ()
    worker: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def description(self) -> str:
        """The line about the recipe in the config."""
        return str(self.values.get("description") or "")

    @property
    def methods(self) -> str:
        """The methods of the stages, in their order."""
        return " > ".join(stage.method or "?" for stage in self.stages)

    @property
    def stage(self) -> StageRecord | None:
        """The stage that it has come to: the last one that has begun, else the first."""
        begun = [stage for stage in self.stages if stage.begun]
        return begun[-1] if begun else next(iter(self.stages), None)

    @property
    def measured(self) -> StageRecord | None:
        """The last stage with measurements; None where nothing was measured."""
        return next((stage for stage in reversed(self.stages) if stage.metric is not None), None)

    def done(self, stage: StageRecord) -> int:
        """Number of steps of a stage: those that are kept; while it is trained, those that are logged."""
        if stage.ended and stage.steps is not None:
            return stage.steps
        running = self.state == "running" and stage is self.stage
        return max(stage.saved, stage.log.step) if running else stage.saved

    @property
    def seconds_left(self) -> float | None:
        """Time that the stage under way needs at its speed of now; None of a run that is not trained."""
        stage = self.stage
        if self.state != "running" or stage is None or stage.steps is None or stage.seconds_per_step is None:
            return None
        return max(stage.steps - self.done(stage), 0) * stage.seconds_per_step

    @property
    def changed(self) -> datetime.datetime | None:
        """Time of the last change of its config, logs, checkpoints and models; None where there are none."""
        times = list(_times(self))
        return datetime.datetime.fromtimestamp(min(max(times), _LATEST), datetime.UTC) if times else None

    def to_dict(self) -> dict[str, Any]:
        """Returns its facts in JSON's types."""
        changed = self.changed
        facts: dict[str, Any] = {"name": self.name, "folder": str(self.folder), "state": self.state}
        facts |= {"problem": self.problem} if self.problem else {}
        facts |= {"description": self.description, "stage": self.stage.name if self.stage else None}
        return facts | {
            "seconds_left": self.seconds_left,
            "changed": None if changed is None else changed.isoformat(timespec="seconds"),
            "process": dict(self.worker) or None,
            "stages": [_facts(self, stage) for stage in self.stages],
        }


def read_record(folder: Path, name: str = "", *, brief: bool = False) -> RunRecord:
    """The state of a run; of a folder that is none, or damaged, the reason.

    Args:
        folder: folder.
        name: name in a list; default: that of the folder.
        brief: whether only the last lines and the measurements of the logs are read.
    """
    name = name or folder.absolute().name
    try:
        worker, values = at_work(folder), read_run(folder)
    except UserError as error:
        exists = os.path.lexists(folder / CONFIG)
        return RunRecord(folder, name, "damaged" if exists else "no run", problem=error.problem)
    except OSError as error:
        return RunRecord(folder, name, "no run", problem=f"cannot be read: {error.strerror}")
    problem = ""
    try:
        check_config(folder)
    except UserError as error:
        problem = error.problem
    raw = values.get("stages")
    if not isinstance(raw, Mapping) or not raw or not all(isinstance(one, Mapping) for one in raw.values()):
        state: State = "damaged" if problem else "no run"
        return RunRecord(folder, name, state, problem=problem or f"its {CONFIG} has no stages")
    try:
        for stage in raw:
            check_stage_name(stage)
        stages = tuple(_stage(folder / stage, own, brief) for stage, own in raw.items())
    except (UserError, OSError) as error:
        return RunRecord(folder, name, "damaged", values, problem=str(error))
    if (folder / _EXPORTED).is_file() and not any(stage.begun for stage in stages):
        return RunRecord(folder, name, "no run", problem="exported weights, which a run can begin from")
    if worker is not None:
        state = "running"
    elif problem:
        state = "damaged"
    else:
        state = "finished" if stages[-1].ended else "interrupted"
    return RunRecord(folder, name, state, values, stages, worker or {}, problem)


def _stage(folder: Path, values: Mapping[str, Any], brief: bool) -> StageRecord:
    steps, saved = _count(values.get("steps")), max(checkpoint_steps(folder / "checkpoints"), default=0)
    method, batch_size = values.get("method"), _count(values.get("batch_size"))
    # A model beside a checkpoint of fewer steps is that of a shorter training, or what the time was enough for.
    ended = (folder / _MODEL).is_file() and (not saved or steps is None or saved >= steps)
    log = read_log(folder / "metrics.jsonl", brief=brief)
    return StageRecord(
        folder.name, folder, method if isinstance(method, str) else "", steps, batch_size, saved, ended, log
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < _MOST_STEPS else None


def _times(run: RunRecord) -> Iterator[float]:
    paths = [run.folder / CONFIG]
    for stage in run.stages:
        paths += [stage.folder / "metrics.jsonl", stage.folder / _MODEL]
        paths += [checkpoint_path(stage.folder / "checkpoints", stage.saved)] if stage.saved else []
    for path in paths:
        try:
            yield path.stat().st_mtime
        except OSError:
            continue


def _facts(run: RunRecord, stage: StageRecord) -> dict[str, Any]:
    speed, best, last = stage.images_per_second, stage.best, stage.last
    return {
        "name": stage.name,
        "method": stage.method,
        "step": run.done(stage),
        "steps": stage.steps,
        "batch_size": stage.batch_size,
        "seconds": stage.seconds,
        "images_per_second": speed,
        "seconds_per_step": stage.seconds_per_step,
        "metric": stage.metric,
        "best": None if best is None else vars(best),
        "last": None if last is None else vars(last),
    }
