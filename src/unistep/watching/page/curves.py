"""Curves of numbers over images, thinned out to what a chart can show."""

from collections.abc import Sequence
from dataclasses import dataclass

from unistep.watching.record import RunRecord, StageRecord

_MOST_POINTS = 250


@dataclass(frozen=True)
class Point:
    """A point of a curve.

    Args:
        x: number of images.
        y: number; the mean of several lines where there are many.
        low, high: smallest and largest of these lines, or the ends of a measurement's interval.
    """

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A curve of a run.

    Args:
        run: number of the run in the report, which chooses colour and dashes.
        name: name of the run.
        points: points, at least one.
        dots: whether each point is a measurement, with its interval.
    """

    run: int
    name: str
    points: tuple[Point, ...]
    dots: bool = False


def curve_of(number: int, run: RunRecord, stage: StageRecord, name: str) -> Curve | None:
    """The curve of a name in a stage's log; None where there is none.

    Args:
        number: number of the run in the report.
        run: run.
        stage: stage.
        name: name of the numbers, as `loss`.
    """
    lines = stage.log.curve(name)
    if not lines:
        return None
    xs = _images(stage)
    points = [Point(xs.get(step, step * (stage.batch_size or 1)), value, value, value) for step, value in lines]
    return Curve(number, run.name, tuple(_thinned(points)))


def distances_of(number: int, run: RunRecord, stage: StageRecord, name: str) -> Curve | None:
    """The measurements of a name in a stage's log, with their intervals; None where there are none."""
    found, xs = stage.measurements(name), _images(stage)
    points = [Point(xs.get(m.step, m.step * (stage.batch_size or 1)), m.value, m.low, m.high) for m in found]
    if not points:
        return None
    return Curve(number, run.name, tuple(points[:: -(-len(points) // _MOST_POINTS)]), dots=True)


def _images(stage: StageRecord) -> dict[int, float]:
    """Numbers of images by step, where the log has them: the batch may have been another than now."""
    return {step: images for step, images in stage.log.curve("images")}


def _thinned(points: Sequence[Point]) -> list[Point]:
    """As many points as a chart shows: means of neighbours, with the range of what they stand for."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    size = -(-len(points) // _MOST_POINTS)
    found = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ys = [point.y for point in part]
        found.append(Point(part[-1].x, sum(ys) / len(ys), min(ys), max(ys)))
    return found
