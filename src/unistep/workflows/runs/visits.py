"""The log of visits: the trainings on several machines that have made a run's weights one after the other.

visits.json     {"visits": [...]}, in the folder of exported weights and in a run that began from such; the run's also
                holds the digest of the index that it began from, and the steps and seconds of before
"""

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unistep.documents import read_json
from unistep.errors import UserError
from unistep.files import whole_file

VISITS = "visits.json"

_REMEDY = "copy the whole folder again"
_MOST_BYTES, _MOST_VISITS, _LONGEST = 4_000_000, 10_000, 300
_MOST = 1 << 60


@dataclass(frozen=True)
class Beginning:
    """Origin of a run that began from exported weights.

    Args:
        index: digest of their index.
        steps: number of steps of each stage that were done before, by name.
        seconds: time of each stage's training before, by name.
        visits: entries of the log of before.
    """

    index: str = ""
    steps: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    visits: Sequence[Mapping[str, Any]] = ()


def new_visit(
    beginning: Beginning,
    steps: Mapping[str, int],
    seconds: Mapping[str, float],
    batch_sizes: Mapping[str, int],
    device: str,
    distance: str | None,
) -> dict[str, Any]:
    """The entry of a run's training since it began.

    Args:
        beginning: its origin; an empty one of a run that began from nothing.
        steps: number of steps done of each stage, by name.
        seconds: time of each stage's training, by name.
        batch_sizes: number of images of a step of each stage, by name.
        device: device that it was trained on.
        distance: measured distance in words; None is none.
    """
    own = {name: max(0, done - beginning.steps.get(name, 0)) for name, done in steps.items()}
    passed = sum(max(0.0, time - beginning.seconds.get(name, 0.0)) for name, time in seconds.items())
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device[:_LONGEST],
        "minutes": round(passed / 60, 2),
        "stages": {
            name: {"step": steps[name], "steps": made, "images": made * batch_sizes[name]} for name, made in own.items()
        },
        "distance": None if distance is None else distance[:_LONGEST],
    }


def write_visits(folder: Path, visits: Sequence[Mapping[str, Any]]) -> None:
    """Writes the log of exported weights."""
    _write(folder, {"visits": list(visits)})


def read_visits(folder: Path) -> list[dict[str, Any]]:
    """The entries of a log.

    Args:
        folder: folder of exported weights, or of a run that began from such.

    Raises:
        UserError: there is no log, or it is damaged.
    """
    path = folder / VISITS
    raw = read_json(path, _REMEDY, most_bytes=_MOST_BYTES)
    visits = raw.get("visits") if isinstance(raw, dict) else None
    if not isinstance(visits, list) or len(visits) > _MOST_VISITS:
        raise UserError(f"{path} holds no list of visits", _REMEDY)
    for number, visit in enumerate(visits):
        if not _is_visit(visit):
            raise UserError(f"{path}: its visit {number} has no date, device, minutes, stages and distance", _REMEDY)
    return visits


def write_beginning(folder: Path, beginning: Beginning) -> None:
    """Writes the origin of a run into its folder."""
    values = {"index": beginning.index, "steps": dict(beginning.steps), "seconds": dict(beginning.seconds)}
    _write(folder, {"began": values, "visits": list(beginning.visits)})


def read_beginning(folder: Path) -> Beginning:
    """The origin of a run; an empty one where it began from nothing.

    Raises:
        UserError: its file is damaged.
    """
    path = folder / VISITS
    if not path.exists():
        return Beginning()
    visits = read_visits(folder)
    began = read_json(path, _REMEDY, most_bytes=_MOST_BYTES).get("began")
    names = ("index", "steps", "seconds")
    if not isinstance(began, dict) or began.keys() != set(names) or not isinstance(began["index"], str):
        raise UserError(f"{path} does not tell what the run began from", "put a copy in its place, or remove it")
    for name in names[1:]:
        if not isinstance(began[name], dict) or not all(map(_is_number, began[name].values())):
            raise UserError(f"{path}: its {name} are no numbers by stage", "put a copy in its place, or remove it")
    return Beginning(began["index"], began["steps"], began["seconds"], visits)


def _write(folder: Path, values: dict[str, Any]) -> None:
    with whole_file(folder / VISITS, durable=True) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _is_visit(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"date", "device", "minutes", "stages", "distance"}:
        return False
    texts = (value["date"], value["device"], value["distance"] or "")
    if not all(isinstance(text, str) and len(text) <= _LONGEST for text in texts):
        return False
    stages = value["stages"]
    if not isinstance(stages, dict) or not _is_number(value["minutes"]):
        return False
    counts = [count for stage in stages.values() for count in (stage.values() if isinstance(stage, dict) else [None])]
    return all(map(_is_number, counts))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value < _MOST
