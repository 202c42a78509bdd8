import pytest

from unistep.editing.tasks import TASKS, task_of
from unistep.errors import UserError


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("steps", [None, 1, 2, 40])
def test_levels_descend_from_the_first(name, steps):
    task = TASKS[name].default
    levels = task.at(steps)
    assert len(levels) == (steps or task.steps)
    assert levels[0] == pytest.approx(task.sigma_first)
    assert all(a > b > 0 for a, b in zip(levels, levels[1:], strict=False))
    if len(levels) > 1:
        assert levels[-1] == pytest.approx(task.sigma_last)


def test_a_low_beginning_still_descends():
    levels = TASKS["vary"].default.at(3, first=0.01)
    assert levels[0] == pytest.approx(0.01) and levels == sorted(levels, reverse=True) and len(set(levels)) == 3


def test_no_steps():
    with pytest.raises(UserError, match="`steps` 0"):
        TASKS["inpaint"].default.at(0)


@pytest.mark.parametrize(
    ("operator", "task"),
    [
        ("super-resolution x4", "upscale"),
        ("deblurring sigma 2", "deblur"),
        ("inpainting", "inpaint"),
        ("my own", "inpaint"),
    ],
)
def test_the_task_of_an_operator(operator, task):
    assert task_of(operator) is TASKS[task]
