"""Numbers of steps, as a number, a sequence or text."""

import pytest

from unistep.errors import UserError
from unistep.searching.steps import steps_of


@pytest.mark.parametrize(
    ("given", "steps"),
    [(2, [2]), ([4, 2, 4], [2, 4]), (range(2, 5), [2, 3, 4]), ((8,), [8])],
)
def test_numbers(given, steps):
    assert steps_of(given) == steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [("2", [2]), ("2..4", [2, 3, 4]), ("4,2", [2, 4]), ("[2, 4]", [2, 4]), ("2..3,3..5", [2, 3, 4, 5]), ("8..8", [8])],
)
def test_text(text: str, steps: list[int]):
    assert steps_of(text) == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "one step begins at sigma_max and has nothing to choose; numbers of steps lie between 2 and 64"),
        ("0", "`steps` 0: numbers of steps lie between 2 and 64"),
        ("2..65", "`steps` 2..65: numbers of steps lie"),
        ("2..999999999", "numbers of steps lie"),
        ("4..2", "the range 4..2 is empty; give 2..4"),
        ("two", "`steps` two: give numbers of steps, as 2 or 2,4 or 2..8"),
        ("", "`steps` '': give numbers"),
        ([], "`steps` is empty; give numbers of steps"),
        ([2, 1], "`steps` 2,1: one step begins at sigma_max"),
        (65, "`steps` 65: numbers of steps lie between 2 and 64"),
        ("2,", "`steps` 2,: give numbers"),
        ("2...4", "`steps` 2...4: give numbers"),
        ("-2", "`steps` -2: give numbers"),
    ],
)
def test_none(text, message: str):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        steps_of(text)
