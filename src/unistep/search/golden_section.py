"""The noise levels of a multistep sampler, searched for: few points of a grid, so that a score is lowest.

Song et al. 2023, "Consistency Models", section 3 and appendix C, choose the points of algorithm 1 one at a time: each
by a ternary search over the grid below the points before it, taking the FID to fall and then rise with its index. Here
a point is searched in that way too, but by golden section (Kiefer 1953), which reuses all that is known of its line and
needs one new score where the ternary search needs two. Then every inner point is searched again with the others held
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

Schedule = tuple[int, ...]
Score = Callable[[Schedule], float]
"""How bad a schedule is: lower is better, NaN is worst. A schedule holds indices of the grid from 0, sigma_max, up."""

_GOLDEN = (3 - math.sqrt(5)) / 2  # 0.382, where golden section cuts


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        timesteps: the best schedule.
        score: its score.
        curves: one for each of its points that was free: the scores seen with that point at other indices and the rest
            where it is, by index, rising.
        evaluations: how many schedules were scored, of this number of steps or fewer.
    """

    timesteps: Schedule
    score: float
    curves: tuple[dict[int, float], ...]
    evaluations: int


def search_timesteps(
    score: Score,
    num_timesteps: int,
    steps: int,
    start: Sequence[Schedule] = (),
    *,
    sweeps: int = 4,
    free_first: bool = False,
    grow: bool = True,
) -> SearchResult:
    """The schedule of `steps` steps that scores lowest.

    Args:
        score: called once a schedule.
        num_timesteps: N of the grid. Points lie in 0 .. N-2: at N-1, sigma_min, nothing is left to do.
        steps: points of the schedule, 1 .. N-1.
        start: schedules to begin with. Those of `steps` steps are candidates. The longest of the others, as a search
            for fewer steps has found it, is extended point by point; without any, (0,) is, or where the first point is
            free the best of one.
        sweeps: how often at most all points are searched again.
        free_first: the first point is searched as well; else it is 0.
        grow: False extends nothing but a start: a search that has one of `steps` steps begins with that alone.

    Raises:
        UserError: more steps than levels above sigma_min, or a start that is no schedule of so many or fewer.
    """
    if not 1 <= steps < num_timesteps:
        raise UserError(f"steps {steps} must lie between 1 and {num_timesteps - 1}, the levels above sigma_min")
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
    return SearchResult(best, seen(best), tuple(seen.line(best, slot) for slot in range(first, steps)), len(seen))


def _check_levels(own: Schedule, num_timesteps: int) -> None:
    if not own or any(a >= b for a, b in pairwise(own)) or own[0] < 0 or own[-1] > num_timesteps - 2:
        raise UserError(f"timesteps {list(own)} must increase and lie between 0 and {num_timesteps - 2}")


class _Seen:
    """All scores so far. A line is all schedules that differ in one slot."""

    def __init__(self, score: Score, end: int, first: int) -> None:
        self._score, self._end = score, end  # points lie below `end`
        self._first = first  # the first slot that is free
        self._scores: dict[Schedule, float] = {}

    def __call__(self, schedule: Schedule) -> float:
        if schedule not in self._scores:
            value = self._score(schedule)
            self._scores[schedule] = math.inf if math.isnan(value) else value
        return self._scores[schedule]

    def __len__(self) -> int:
        return len(self._scores)

    def line(self, schedule: Schedule, slot: int) -> dict[int, float]:
        """The scores seen on a line through `schedule`, by index."""
        return {i: self._scores[s] for i, s in self._line(schedule, slot).items() if s in self._scores}

    def _line(self, schedule: Schedule, slot: int) -> dict[int, Schedule]:
        before, after = (-1, *schedule, self._end)[slot : slot + 3 : 2]
        return {i: (*schedule[:slot], i, *schedule[slot + 1 :]) for i in range(before + 1, after)}

    def searched(self, schedule: Schedule, slot: int) -> Schedule:
        """The best of a line through `schedule`."""
        line = self._line(schedule, slot)
        return line[lowest(lambda i: self(line[i]), min(line), max(line), self.line(schedule, slot))]

    def extended(self, schedule: Schedule) -> Schedule:
        """The best with one more point: after the last, as in the paper, or in the widest gap."""
        before = (-1, *schedule)
        gaps = {slot: (*schedule, self._end)[slot] - before[slot] for slot in range(self._first, len(before))}
        slots = [slot for slot in {len(schedule), max(gaps, key=lambda slot: gaps[slot])} if gaps[slot] > 1]
        grown = [self.searched((*schedule[:slot], before[slot] + 1, *schedule[slot:]), slot) for slot in slots]
        return min(grown, key=self)


def lowest(value: Callable[[int], float], low: int, high: int, known: Mapping[int, float] | None = None) -> int:
    """Where on low .. high a value is lowest that falls and then rises; else a place lower than those beside it.

    Args:
        value: asked at places that are not known, 3 + 1.44 log2(high - low) of them or few more.
        low, high: the first and the last place.
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
