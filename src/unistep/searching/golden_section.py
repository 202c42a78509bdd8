"""Search for few points of a grid with the lowest score, such as the noise levels of a multistep sampler.

Song et al. 2023, "Consistency Models", section 3 and appendix C, choose the points of algorithm 1 one at a time: each
by a ternary search over the grid below the points before it, taking the FID to fall and then rise with its index. Here
a point is searched in that way too, but by golden section (Kiefer 1953), which reuses all scores of its line and needs
one new score where the ternary search needs two. Then every inner point is searched again with the others held
(coordinate descent) until none moves: the first of several points was chosen for the end of a shorter schedule. Where
the first one is free too, as for an edit, which need not begin with pure noise, it is searched like the others.

What comes out is the best of everything seen: no worse than any schedule that the search was given to start from. On a
line where the score has one valley its lowest point is found, in O(log N) scores; elsewhere a point that is no worse
than its neighbours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from unistep.errors import UserError
from unistep.samplers.consistency import sigmas_from_indices

Indices = tuple[int, ...]
"""A schedule as indices of the grid from 0, sigma_max, up."""

Score = Callable[[Indices], float]
"""Score of a schedule: lower is better, NaN is worst."""

_GOLDEN = (3 - math.sqrt(5)) / 2  # 0.382, where golden section cuts


@dataclass(frozen=True)
class GoldenSectionResult:
    """Outcome of a search.

    Args:
        timesteps: best schedule.
        score: score of the best schedule.
        curves: one mapping for each free point of the best schedule: ascending indices of that point to the scores of
            the schedules that differ from the best in that point alone.
        evaluations: number of schedules that were scored, of this number of steps or fewer.
    """

    timesteps: Indices
    score: float
    curves: tuple[dict[int, float], ...]
    evaluations: int


def search_timesteps(
    score: Score,
    num_timesteps: int,
    steps: int,
    start: Sequence[Indices] = (),
    *,
    sweeps: int = 4,
    free_first: bool = False,
    grow: bool = True,
) -> GoldenSectionResult:
    """Finds the schedule of `steps` steps with the lowest score.

    Args:
        score: function that is called once a schedule.
        num_timesteps: number of levels N of the grid. Points lie in 0 .. N-2: at N-1, sigma_min, nothing is left to do.
        steps: number of points of the schedule, 1 .. N-1.
        start: schedules to begin with. Those of `steps` steps are candidates. The longest of the others, as a search
            for fewer steps has found it, is extended point by point; without any, (0,) is, or where the first point is
            free the best of one.
        sweeps: largest number of times that all points are searched again.
        free_first: whether the first point is searched as well; else it is 0.
        grow: whether something else than a start is extended too; with False a search that has a start of `steps`
            steps begins with that alone.

    Raises:
        UserError: more steps than levels above sigma_min, or a start that is no schedule of so many or fewer.
    """
    if not 1 <= steps < num_timesteps:
        raise UserError(f"`steps` {steps} must lie between 1 and {num_timesteps - 1}, the levels above sigma_min")
    for own in start:
        if free_first:
            _check_levels(own, num_timesteps)
        else:
            sigmas_from_indices(own, num_timesteps - 1)  # refuses what is no schedule above sigma_min
        if len(own) > steps:
            raise UserError(f"timesteps {list(own)} are {len(own)} steps; a search for {steps} cannot start there")
    first = 0 if free_first else 1
    seen = _Seen(score, num_timesteps - 1, first)
    full = sorted((own for own in start if len(own) == steps), key=seen)  # scored first: they may lie on a line below
    grown = max((own for own in start if len(own) < steps), key=len, default=())
    if grown or grow or not full:
        grown = grown or (seen.searched((0,), 0) if free_first else (0,))
        while len(grown) < steps:
            grown = seen.extended(grown)
        full = [*full, grown]
    best = min(full, key=seen)
    for _ in range(sweeps):
        before = best
        # The last one first: those before it are the beginning that many schedules share.
        for slot in reversed(range(first, steps)):
            best = seen.searched(best, slot)
        if best == before:
            break
    return GoldenSectionResult(
        best, seen(best), tuple(seen.line(best, slot) for slot in range(first, steps)), len(seen)
    )


def _check_levels(own: Indices, num_timesteps: int) -> None:
    if not own or any(a >= b for a, b in pairwise(own)) or own[0] < 0 or own[-1] > num_timesteps - 2:
        raise UserError(f"timesteps {list(own)} must increase and lie between 0 and {num_timesteps - 2}")


class _Seen:
    """All scores so far. A line is all schedules that differ in one slot."""

    def __init__(self, score: Score, end: int, first: int) -> None:
        self._score, self._end = score, end  # points lie below `end`
        self._first = first  # the first slot that is free
        self._scores: dict[Indices, float] = {}

    def __call__(self, schedule: Indices) -> float:
        if schedule not in self._scores:
            value = self._score(schedule)
            self._scores[schedule] = math.inf if math.isnan(value) else value
        return self._scores[schedule]

    def __len__(self) -> int:
        return len(self._scores)

    def line(self, schedule: Indices, slot: int) -> dict[int, float]:
        """The scores seen on a line through `schedule`, by index."""
        return {i: self._scores[s] for i, s in self._line(schedule, slot).items() if s in self._scores}

    def _line(self, schedule: Indices, slot: int) -> dict[int, Indices]:
        before, after = (-1, *schedule, self._end)[slot : slot + 3 : 2]
        return {i: (*schedule[:slot], i, *schedule[slot + 1 :]) for i in range(before + 1, after)}

    def searched(self, schedule: Indices, slot: int) -> Indices:
        """The best schedule of a line through `schedule`."""
        line = self._line(schedule, slot)
        return line[lowest(lambda i: self(line[i]), min(line), max(line), self.line(schedule, slot))]

    def extended(self, schedule: Indices) -> Indices:
        """The best schedule with one more point: after the last, as in the paper, or in the widest gap."""
        before = (-1, *schedule)
        gaps = {slot: (*schedule, self._end)[slot] - before[slot] for slot in range(self._first, len(before))}
        slots = [slot for slot in {len(schedule), max(gaps, key=lambda slot: gaps[slot])} if gaps[slot] > 1]
        grown = [self.searched((*schedule[:slot], before[slot] + 1, *schedule[slot:]), slot) for slot in slots]
        return min(grown, key=self)


def lowest(value: Callable[[int], float], low: int, high: int, known: Mapping[int, float] | None = None) -> int:
    """The place on low .. high of the lowest value where values fall and then rise, else one below its neighbours.

    Args:
        value: function that is called at 3 + 1.44 log2(high - low) new places or few more.
        low, high: first and last place.
        known: values from before, by place.
    """
    seen = dict(known or {})
    if len(seen) < 3:
        # Far from a valley scores are flat, and which of two is lower says little: look everywhere before going down.
        width = high - low
        for place in [low + width * quarter // 4 for quarter in (1, 2, 3)] if width >= 8 else [low + width // 2]:
            if place not in seen:
                seen[place] = value(place)
    while True:
        best = min(seen, key=lambda place: seen[place])
        left = best - max((place for place in seen if place < best), default=low - 1)
        right = min((place for place in seen if place > best), default=high + 1) - best
        if left == right == 1:
            return best
        # The lowest place is less than `left` below and less than `right` above the best.
        new = best - max(1, round(_GOLDEN * left)) if left > right else best + max(1, round(_GOLDEN * right))
        seen[new] = value(new)
