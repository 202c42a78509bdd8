"""The numbers of schedules in a search, each measured once, and what a search has found.

All candidates are measured on the same images with the same noise, so that a difference of numbers is one of schedules
and hardly of luck. A little luck is left in the best of many numbers, so what was found is measured once more, on
images that had no part in the choice, beside what it is to replace.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float32
from torch import Tensor

from unistep.metrics.estimate import Estimate
from unistep.metrics.measures import Better
from unistep.search.metric import jackknife
from unistep.search.record import Schedule, SearchRecord

FOUND, EVEN, OWN, USUAL = "found", "evenly spaced", "the model's own", "the task's own"

Unit = Literal["timesteps", "sigmas"]
"""What a schedule lists: indices of the model's grid, or noise levels."""

Progress = Callable[[str, int, int], None]
"""Told what is being measured, how many of its images are done, and how many there are."""

Curve = dict[float, float]
"""Numbers of schedules that differ in one point, by where that is."""

Features = Callable[[Schedule, bool], Float32[Tensor, "N D"]]
"""What the images of a schedule are measured by; of the search, or fresh ones."""


@runtime_checkable
class Measure(Protocol):
    """One number of all images, as a `Yardstick` gives it, from what each is measured by."""

    @property
    def better(self) -> Better:
        """Which way."""
        ...

    def value(self, features: Float32[Tensor, "N D"], /) -> float:
        """The number."""
        ...

    def without_groups(self, features: Float32[Tensor, "N D"]) -> tuple[float, ...]:
        """The number without each of the groups of images; for `jackknife`."""
        ...

    def estimate(self, value: float, without: Sequence[float]) -> Estimate:
        """The number with its error."""
        ...


@dataclass(frozen=True)
class Judged:
    """A schedule beside others.

    Args:
        names: what it is: FOUND, EVEN, OWN, USUAL, or several of them.
        schedule: its points.
        searched: its number on the images of the search.
        fresh: its number on fresh images.
        difference: the number of the schedule found less this one's, on the same fresh images; None of that itself.
        beside: what is told beside, on the same; see `SearchRecord`.
    """

    names: tuple[str, ...]
    schedule: Schedule
    searched: float
    fresh: Estimate
    difference: Estimate | None
    beside: float | None = None


@dataclass(frozen=True)
class Found:
    """What was found for a number of steps.

    Args:
        schedule: the best on the images of the search.
        curves: for each of its points that was free, the last one last: numbers with that point elsewhere, by where.
        judged: the schedule found, and what it is compared with.
        unit: of the schedules.
    """

    schedule: Schedule
    curves: tuple[Curve, ...]
    judged: tuple[Judged, ...]
    unit: Unit = "timesteps"

    @property
    def steps(self) -> int:
        """Network evaluations an image."""
        return len(self.schedule)

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The schedule of a sampler."""
        return tuple(int(point) for point in self.schedule)

    def of(self, name: str) -> Judged | None:
        """The schedule of a name; None where there is none."""
        return next((j for j in self.judged if name in j.names), None)

    def as_json(self) -> dict[str, Any]:
        """As search.json has it."""
        return {
            "steps": self.steps,
            self.unit: list(self.schedule),
            "judged": [
                {
                    "names": list(j.names),
                    self.unit: list(j.schedule),
                    "on_images_of_the_search": j.searched,
                    "on_fresh_images": _as_json(j.fresh),
                    "found_less_this": None if j.difference is None else _as_json(j.difference),
                    **({} if j.beside is None else {"off_the_known_part": j.beside}),
                }
                for j in self.judged
            ],
            "curves": [{str(at): value for at, value in curve.items()} for curve in self.curves],
        }


def listed(schedule: Schedule) -> str:
    """A schedule as flags take it. Noise levels that are searched have no more digits than these."""
    return ",".join(f"{point:.4g}" if isinstance(point, float) else str(point) for point in schedule)


class Scores:
    """The numbers of schedules, from the record where it has them.

    Args:
        measure: whose numbers they are.
        record: of what was measured so far; kept up to date.
        features: makes and looks at the images of a schedule.
    """

    def __init__(self, measure: Measure, record: SearchRecord, features: Features) -> None:
        self.measure, self.record, self._features = measure, record, features
        self.sign = 1 if measure.better == "lower" else -1

    def badness(self, schedule: Schedule) -> float:
        """What a search makes small."""
        return self.sign * self.searched(schedule)

    def numbers(self, curves: Sequence[Mapping[int, float]], at: Sequence[float] | None = None) -> tuple[Curve, ...]:
        """Curves of badness, by index, as curves of numbers, by what `at` has there, or by index."""
        return tuple({i if at is None else at[i]: self.sign * bad for i, bad in curve.items()} for curve in curves)

    def searched(self, schedule: Schedule) -> float:
        """The number on the images of the search."""
        if schedule not in self.record.scores:
            self.record.scores[schedule] = self.measure.value(self._features(schedule, False))
            self.record.write()
        return self.record.scores[schedule]

    def fresh(self, schedule: Schedule) -> tuple[float, tuple[float, ...]]:
        """The number on fresh images, and the numbers without each group of them."""
        if schedule not in self.record.fresh:
            features = self._features(schedule, True)
            self.record.fresh[schedule] = self.measure.value(features), self.measure.without_groups(features)
            self.record.write()
        return self.record.fresh[schedule]

    def judged(self, best: Schedule, others: Mapping[str, Schedule | None]) -> tuple[Judged, ...]:
        """What was found beside others, each with all its names."""
        names: dict[Schedule, list[str]] = {best: [FOUND]}
        for name, schedule in others.items():
            if schedule is not None:
                names.setdefault(schedule, []).append(name)
        return tuple(self._judge(schedule, best, called) for schedule, called in names.items())

    def _judge(self, schedule: Schedule, best: Schedule, names: list[str]) -> Judged:
        value, without = self.fresh(schedule)
        difference = None
        if schedule != best:
            of_best, without_best = self.fresh(best)
            difference = jackknife(of_best - value, [b - v for b, v in zip(without_best, without, strict=True)])
        return Judged(
            tuple(names),
            schedule,
            self.searched(schedule),
            self.measure.estimate(value, without),
            difference,
            self.record.beside.get(schedule),
        )

    def keep(self, found: Found) -> None:
        """Writes what was found."""
        self.record.found.append(found.as_json())
        self.record.write()


def _as_json(estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.interval
    return {"value": estimate.value, "standard_error": estimate.standard_error, "interval_95": [low, high]}
