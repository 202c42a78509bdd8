"""search.json: the numbers that a search has computed, with which an interrupted one goes on, and its results."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unistep.errors import UserError
from unistep.files import check_regular_file, whole_file

Schedule = tuple[float, ...]
"""Timesteps of a sampler, which are whole numbers, or noise levels of an edit."""

_MOST_BYTES = 64 << 20


@dataclass
class SearchRecord:
    """Numbers of schedules, written whole after each of them.

    Args:
        path: place of the file; None keeps it in memory alone.
        settings: everything that the numbers depend on, by a name for people; JSON.
        scores: numbers on the images of the search, by schedule.
        fresh: numbers on fresh images, and those without each group of images, by schedule.
        residuals: means over fresh images of an edit's residual, by schedule; empty for samplers.
        labels: classes that were guessed, by the name of the images; guessing costs as much as many candidates.
        found: results as JSON; see `unistep.searching.scores`.
    """

    path: Path | None
    settings: dict[str, Any]
    scores: dict[Schedule, float] = field(default_factory=dict)
    fresh: dict[Schedule, tuple[float, tuple[float, ...]]] = field(default_factory=dict)
    residuals: dict[Schedule, float] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)
    found: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of the file."""
        content: dict[str, Any] = {
            "found": self.found,
            "scores": {_text(own): value for own, value in self.scores.items()},
            "fresh": {
                _text(own): {"value": value, "without_a_group": without} for own, (value, without) in self.fresh.items()
            },
            "settings": self.settings,
        }
        if self.residuals:
            content["beside"] = {_text(own): value for own, value in self.residuals.items()}
        if self.labels:
            content["labels"] = self.labels
        return content

    def write(self) -> None:
        """Writes the file where it has a place.

        Raises:
            UserError: it cannot be written.
        """
        if self.path is not None:
            self.write_to(self.path)

    def write_to(self, path: Path) -> None:
        """Writes a file, which appears whole.

        Args:
            path: place of the file.

        Raises:
            UserError: it cannot be written.
        """
        try:
            with whole_file(path) as temporary:
                temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}; choose another `output`") from None


def open_record(path: Path | None, settings: dict[str, Any]) -> SearchRecord:
    """Reads the record at a path; one that is not there is empty.

    Args:
        path: place of the file; None is a record in memory.
        settings: settings of the search; those of the file must be the same.

    Raises:
        UserError: the file is of a search with other settings, or no record.
    """
    settings = json.loads(json.dumps(settings))
    if path is None or not path.exists():
        return SearchRecord(path, settings)
    other = "delete it, or give another `output`"
    check_regular_file(path, other, most_bytes=_MOST_BYTES)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        former = dict(content["settings"])
        scores = {_schedule(own): float(value) for own, value in content["scores"].items()}
        fresh = {
            _schedule(own): (float(entry["value"]), tuple(map(float, entry["without_a_group"])))
            for own, entry in content["fresh"].items()
        }
        residuals = {_schedule(own): float(value) for own, value in content.get("beside", {}).items()}
        labels = {name: [int(c) for c in of_images] for name, of_images in content.get("labels", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        raise UserError(f"{path} is not the record of a search, or is damaged; {other}") from None
    differing = [name for name in {**former, **settings} if former.get(name) != settings.get(name)]
    if differing:
        what = ", ".join(_difference(name, former.get(name), settings.get(name)) for name in differing)
        raise UserError(f"{path} is of a search that differs in {what}; {other}")
    return SearchRecord(path, settings, scores, fresh, residuals, labels)


def _difference(name: str, former: Any, now: Any) -> str:
    texts = [str(value) for value in (former, now)]
    return name if any(len(text) > 40 for text in texts) else f"{name} ({texts[0]}, now {texts[1]})"


def _text(schedule: Schedule) -> str:
    return ",".join(map(str, schedule))


def _schedule(text: str) -> Schedule:
    return tuple(int(number) if number.isdigit() else float(number) for number in text.split(","))
