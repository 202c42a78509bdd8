"""Numbers of schedules in a search, each computed once, and the results of a search.

All candidates get the same images and the same noise, so that a difference of numbers is one of schedules and hardly of
chance. A little chance is left in the best of many numbers, so the schedule that was found is evaluated once more, on
images that had no part in the choice, beside those that it is to replace.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float32
from torch import Tensor

from unistep.metrics.estimate import Estimate
from unistep.metrics.metric import Better
from unistep.searching.metric import jackknife
from unistep.searching.record import Schedule, SearchRecord

FOUND, EVEN, OWN, USUAL = "found", "evenly spaced", "the model's own", "the task's own"

Unit = Literal["timesteps", "sigmas"]
"""Meaning of a schedule's numbers: indices of the model's grid, or noise levels."""

Curve = dict[float, float]
"""Numbers of schedules that differ in one point, by the place of that point."""

Features = Callable[[Schedule, bool], Float32[Tensor, "N D"]]
"""Features of the images of a schedule: those of the search, or fresh ones where True."""


@runtime_checkable
class ScoreMetric(Protocol):
    """One number of all images, as a `SearchMetric` and a `FullReferenceMetric` give it."""

    @property
    def title(self) -> str:
        """Title of the number."""
        ...

    @property
    def better(self) -> Better:
        """Direction of improvement."""
        ...

    def value(self, features: Float32[Tensor, "N D"], /) -> float:
        """Returns the number of features."""
        ...

    def without_groups(self, features: Float32[Tensor, "N D"]) -> tuple[float, ...]:
        """Returns the numbers without each of the groups of images, for `jackknife`."""
        ...

    def estimate(self, value: float, without: Sequence[float]) -> Estimate:
        """Returns a number with its error, from the numbers without each group."""
        ...


@dataclass(frozen=True)
class Judged:
    """A schedule beside others.

    Args:
        names: names of the schedule: FOUND, EVEN, OWN, USUAL, or several of them.
        schedule: points of the schedule, descending in noise level.
        searched: metric on the images of the search.
        fresh: metric on fresh images, with its error.
        difference: metric of the schedule that was found minus this one's, on the same fresh images; None for itself.
        residual: mean residual of an edit on fresh images; None for samplers.
    """

    names: tuple[str, ...]
    schedule: Schedule
    searched: float
    fresh: Estimate
    difference: Estimate | None
    residual: float | None = None


@dataclass(frozen=True)
class Found:
    """Result for a number of steps.

    Args:
        schedule: best schedule on the images of the search.
        curves: one curve for each free point of the schedule, in its order: positions of that point to the metric of
            the schedules that differ in that point alone.
        judged: the schedule that was found, and those that it is compared with.
        unit: meaning of the schedules' numbers.
    """

    schedule: Schedule
    curves: tuple[Curve, ...]
    judged: tuple[Judged, ...]
    unit: Unit = "timesteps"

    @property
    def steps(self) -> int:
        """Number of network evaluations an image."""
        return len(self.schedule)

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Timesteps of a sampler."""
        return tuple(int(point) for point in self.schedule)

    def of(self, name: str) -> Judged | None:
        """Returns the schedule of a name; None where there is none."""
        return next((j for j in self.judged if name in j.names), None)

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of search.json."""
        return {
            "steps": self.steps,
            self.unit: list(self.schedule),
            "judged": [
                {
                    "names": list(j.names),
                    self.unit: list(j.schedule),
                    "on_images_of_the_search": j.searched,
                    "on_fresh_images": _to_dict(j.fresh),
                    "found_less_this": None if j.difference is None else _to_dict(j.difference),
                    **({} if j.residual is None else {"off_the_known_part": j.residual}),
                }
                for j in self.judged
            ],
            "curves": [{str(at): value for at, value in curve.items()} for curve in self.curves],
        }


def listed(schedule: Schedule) -> str:
    """Returns a schedule as text, as options take it. Noise levels of a search have no more digits than these."""
    return ",".join(f"{point:.4g}" if isinstance(point, float) else str(point) for point in schedule)


class Scores:
    """Numbers of schedules, from the record where it has them.

    Args:
        metric: metric of the numbers.
        record: numbers that were computed before; kept up to date.
        features: function that makes the images of a schedule and returns their features.
    """

    def __init__(self, metric: ScoreMetric, record: SearchRecord, features: Features) -> None:
        self.metric, self.record, self._features = metric, record, features
        self.sign = 1 if metric.better == "lower" else -1

    def badness(self, schedule: Schedule) -> float:
        """Returns the number that a search minimises."""
        return self.sign * self.searched(schedule)

    def numbers(self, curves: Sequence[Mapping[int, float]], at: Sequence[float] | None = None) -> tuple[Curve, ...]:
        """Returns curves of numbers.

        Args:
            curves: curves of badness, by index.
            at: place of each index; None takes the indices.
        """
        return tuple({i if at is None else at[i]: self.sign * bad for i, bad in curve.items()} for curve in curves)

    def searched(self, schedule: Schedule) -> float:
        """Returns the number on the images of the search."""
        if schedule not in self.record.scores:
            self.record.scores[schedule] = self.metric.value(self._features(schedule, False))
            self.record.write()
        return self.record.scores[schedule]

    def fresh(self, schedule: Schedule) -> tuple[float, tuple[float, ...]]:
        """Returns the number on fresh images, and the numbers without each group of them."""
        if schedule not in self.record.fresh:
            features = self._features(schedule, True)
            self.record.fresh[schedule] = self.metric.value(features), self.metric.without_groups(features)
            self.record.write()
        return self.record.fresh[schedule]

    def judged(self, best: Schedule, others: Mapping[str, Schedule | None]) -> tuple[Judged, ...]:
        """Returns the schedule that was found beside others, each with all its names.

        Args:
            best: schedule that was found.
            others: schedules by name; None where there is none.
        """
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
            self.metric.estimate(value, without),
            difference,
            self.record.residuals.get(schedule),
        )

    def keep(self, found: Found) -> None:
        """Writes a result to the record."""
        self.record.found.append(found.to_dict())
        self.record.write()


def _to_dict(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.value,
        "standard_error": estimate.standard_error,
        "interval_95": list(estimate.interval),
    }
