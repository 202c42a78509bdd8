"""The search for timesteps, against brute force."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unistep.errors import UserError
from unistep.searching.golden_section import lowest, search_timesteps


class Counted:
    """A score that says how often it was asked, and never twice the same."""

    def __init__(self, score):
        self.score, self.asked = score, []

    def __call__(self, schedule):
        assert schedule not in self.asked
        self.asked.append(schedule)
        return self.score(schedule)


def schedules(num_timesteps, steps):
    return [(0, *rest) for rest in itertools.combinations(range(1, num_timesteps - 1), steps - 1)]


@st.composite
def valleys(draw):
    """A list of numbers that falls strictly, then rises strictly, as unevenly as can be."""
    count = draw(st.integers(1, 120))
    at = draw(st.integers(0, count - 1))
    slope = st.sampled_from([1e-9, 0.01, 1.0, 1e6])
    left = list(itertools.accumulate(draw(st.lists(slope, min_size=at, max_size=at))))
    right = list(itertools.accumulate(draw(st.lists(slope, min_size=count - 1 - at, max_size=count - 1 - at))))
    return [*reversed(left), 0.0, *right]


# ---------------------------------------------------------------------------------------------------------- on a line


@given(valleys(), st.integers(-5, 5), st.sets(st.integers(0, 119), max_size=4))
def test_the_lowest_of_a_valley_is_found_in_few_values(values, low, known):
    asked = []

    def value(place):
        assert low <= place < low + len(values)
        asked.append(place)
        return values[place - low]

    before = {low + i: values[i] for i in known if i < len(values)}
    assert lowest(value, low, low + len(values) - 1, before) == low + values.index(0.0)
    assert len(set(asked)) == len(asked) and not set(asked) & set(before)
    assert len(asked) <= 5 + 1.45 * math.log2(len(values))


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, math.inf]), min_size=1, max_size=60))
def test_on_any_line_a_place_no_worse_than_those_beside_it_and_all_seen(values):
    seen = {}

    def value(place):
        seen[place] = values[place]
        return values[place]

    best = lowest(value, 0, len(values) - 1)
    beside = [values[i] for i in (best - 1, best + 1) if 0 <= i < len(values)]
    assert values[best] == min([*seen.values(), *beside])


def test_flat_ends_do_not_lead_astray():
    """As curves of the FID are: flat where the second step is too early or too late."""
    for at in range(10, 31):
        noise = [1e-3 * math.sin(37 * i) for i in range(41)]
        values = [noise[i] - max(0.0, 1 - abs(i - at) / 6) for i in range(41)]
        assert lowest(lambda i, values=values: values[i], 0, 40) == at


# ----------------------------------------------------------------------------------------------------------- schedules


@given(valleys().filter(lambda v: len(v) > 1))
def test_two_steps_are_the_best_of_all(values):
    num_timesteps = len(values) + 2
    score = Counted(lambda s: values[s[1] - 1] if len(s) == 2 else 9.0)
    result = search_timesteps(score, num_timesteps, 2)
    assert result.timesteps == (0, values.index(0.0) + 1)
    assert result.score == 0.0
    assert result.evaluations == len(score.asked) <= 5 + 1.45 * math.log2(len(values))


@pytest.mark.parametrize("steps", [2, 3, 4, 5])
@pytest.mark.parametrize("rising", [False, True])
def test_every_number_of_steps_against_brute_force(steps, rising):
    """What each point wants grows with the others, as the best levels do."""
    targets = [0, 3, 7, 8, 14] if rising else [0, 12, 13, 14, 15]

    def score(s):
        pulls = sum(abs(t - target) ** 1.5 for t, target in zip(s, targets, strict=False))
        return pulls + 0.1 * sum((b - a - 3) ** 2 for a, b in itertools.pairwise(s))

    best = min(schedules(18, steps), key=score)
    result = search_timesteps(Counted(score), 18, steps)
    assert result.score == pytest.approx(score(best)) and result.timesteps == best
    assert result.evaluations < len(schedules(18, steps)) or steps == 2


@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(0, 3))
def test_never_worse_than_any_start_or_anything_seen(seed, steps, sweeps):
    """On a landscape of noise, where nothing can be known."""
    score = Counted(lambda s: hash((seed, s)) % 1000)
    everything = schedules(14, steps)
    start = [everything[seed % len(everything)], everything[seed // 7 % len(everything)], (0, 1 + seed % 12)[:steps]]
    result = search_timesteps(score, 14, steps, start, sweeps=sweeps)
    assert set(start[:2]) <= set(score.asked)
    assert result.score == min(score.score(s) for s in score.asked if len(s) == steps) == score.score(result.timesteps)
    assert result.timesteps in everything
    assert result.evaluations == len(score.asked)


def test_more_steps_start_from_fewer():
    score = Counted(lambda s: sum(abs(t - 10 * i) for i, t in enumerate(s)))
    result = search_timesteps(score, 40, 4, [(0, 10, 20)])
    assert result.timesteps == (0, 10, 20, 30)
    assert {len(s) for s in score.asked} == {4}
    assert score.asked[0][:3] == (0, 10, 20)
    without = search_timesteps(Counted(score.score), 40, 4)
    assert without.timesteps == result.timesteps and without.evaluations > result.evaluations


def test_points_move_again_in_company():
    """Alone the second point wants the middle; with a third it does not: a greedy search ends at (0, 20, .)."""
    wanted = {2: (0, 20), 3: (0, 8, 25)}
    result = search_timesteps(lambda s: sum(abs(a - b) for a, b in zip(s, wanted.get(len(s), s), strict=True)), 40, 3)
    assert result.timesteps == (0, 8, 25)
    greedy = search_timesteps(
        lambda s: sum(abs(a - b) for a, b in zip(s, wanted[len(s)], strict=True)), 40, 3, sweeps=0
    )
    assert greedy.timesteps in ((0, 20, 25), (0, 8, 20))


def test_the_curves_are_the_lines_through_what_was_found():
    score = Counted(lambda s: float(sum((t - 9 * i) ** 2 for i, t in enumerate(s))))
    result = search_timesteps(score, 30, 3, [(0, 5, 6)])
    assert result.timesteps == (0, 9, 18)
    first, second = result.curves
    assert first == {s[1]: score.score(s) for s in sorted(score.asked) if len(s) == 3 and s[2] == 18}
    assert second == {s[2]: score.score(s) for s in sorted(score.asked) if len(s) == 3 and s[1] == 9}
    assert first[9] == second[18] == result.score == 0
    assert list(second) == sorted(second) and len(second) > 4
    assert {8, 10} <= set(first) and {17, 19} <= set(second)


def test_as_many_steps_as_levels():
    assert search_timesteps(lambda s: 0.0, 6, 5).timesteps == (0, 1, 2, 3, 4)
    assert search_timesteps(lambda s: 0.0, 2, 1).timesteps == (0,)
    one = search_timesteps(lambda s: 7.0, 40, 1)
    assert (one.timesteps, one.score, one.curves, one.evaluations) == ((0,), 7.0, (), 1)


def test_a_score_that_is_no_number_is_the_worst():
    result = search_timesteps(lambda s: math.nan if s[1] != 21 else 5.0, 40, 2, [(0, 21)])
    assert (result.timesteps, result.score) == ((0, 21), 5.0)


# ----------------------------------------------------------------------------------------- where the first is free too


def free_schedules(num_timesteps, steps):
    return list(itertools.combinations(range(num_timesteps - 1), steps))


@given(valleys())
def test_one_free_step_is_the_best_of_all(values):
    result = search_timesteps(Counted(lambda s: values[s[0]]), len(values) + 1, 1, free_first=True)
    assert result.timesteps == (values.index(0.0),) and result.score == 0.0
    assert result.evaluations <= 5 + 1.45 * math.log2(len(values)) and len(result.curves) == 1


@pytest.mark.parametrize("targets", [[3, 7, 8, 14], [0, 1, 2, 3], [13, 14, 15, 16]])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_every_number_of_free_steps_against_brute_force(steps, targets):
    def score(s):
        pulls = sum(abs(t - target) ** 1.5 for t, target in zip(s, targets, strict=False))
        return pulls + 0.1 * sum((b - a - 2) ** 2 for a, b in itertools.pairwise(s))

    best = min(free_schedules(18, steps), key=score)
    result = search_timesteps(Counted(score), 18, steps, free_first=True)
    assert result.score == pytest.approx(score(best)) and result.timesteps == best
    assert len(result.curves) == steps
    assert all(curve[point] == result.score for curve, point in zip(result.curves, best, strict=True))


@given(st.integers(0, 2**31), st.integers(1, 4), st.booleans())
def test_free_and_never_worse_than_any_start_or_anything_seen(seed, steps, grow):
    score = Counted(lambda s: hash((seed, s)) % 1000)
    everything = free_schedules(10, steps)
    start = [everything[seed % len(everything)], everything[seed // 7 % len(everything)], (seed % 9,)]
    result = search_timesteps(score, 10, steps, start, free_first=True, grow=grow)
    assert set(start[:2]) <= set(score.asked) and set(score.asked) <= {
        s for n in (1, 2, 3, 4) for s in free_schedules(10, n)
    }
    assert result.score == min(score.score(s) for s in score.asked if len(s) == steps) == score.score(result.timesteps)


def test_a_point_is_put_before_the_first():
    """Where the widest gap is: the one-step schedule is low on the grid."""
    wanted = {1: (30,), 2: (6, 30)}
    result = search_timesteps(
        lambda s: sum(abs(a - b) for a, b in zip(s, wanted[len(s)], strict=True)),
        40,
        2,
        [(30,)],
        free_first=True,
        sweeps=0,
    )
    assert result.timesteps == (6, 30)


def test_nothing_but_a_start_grows():
    """A search near a good schedule need not find it from nothing."""
    score = Counted(lambda s: float(sum((t - 9 * i - 2) ** 2 for i, t in enumerate(s))))
    near = search_timesteps(score, 40, 4, [(3, 10, 19, 30)], free_first=True, grow=False)
    assert near.timesteps == (2, 11, 20, 29) and {len(s) for s in score.asked} == {4}
    # From fewer steps it grows all the same, and from nothing where nothing is given.
    fewer = Counted(score.score)
    search_timesteps(fewer, 40, 3, [(3, 10, 19), (2, 11)], free_first=True, grow=False)
    assert any(s[:2] == (2, 11) and s != (2, 11, 20) for s in fewer.asked)
    assert search_timesteps(Counted(score.score), 40, 3, free_first=True, grow=False).timesteps == (2, 11, 20)


@pytest.mark.parametrize("own", [(), (-1, 3), (3, 3), (5, 3), (3, 39)])
def test_a_free_start_that_is_none(own):
    with pytest.raises(UserError, match=r"timesteps \[.*\] must increase and lie between 0 and 38"):
        search_timesteps(lambda s: 0.0, 40, 2, [own], free_first=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((40, 40), "`steps` 40 must lie between 1 and 39"),
        ((40, 0), "`steps` 0 must lie between 1 and 39"),
        ((40, 2, [(0, 39)]), r"`timesteps` \[0, 39\] must be below 39"),
        ((40, 2, [(1, 20)]), "must start with 0"),
        ((40, 2, [(0, 5, 5)]), "must increase"),
        ((40, 2, [(0, 5, 6)]), r"timesteps \[0, 5, 6\] are 3 steps; a search for 2 cannot start there"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        search_timesteps(lambda s: 0.0, *arguments)
