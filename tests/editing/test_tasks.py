import dataclasses
import subprocess
import sys

import pytest
import torch

from unistep.core.pixels import to_float
from unistep.editing.model import EditModel
from unistep.editing.tasks import MEASUREMENT_TASKS, TASKS, make_task, measurement_options, task_of, tasks_with
from unistep.editing.tasks.task import EditContext
from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.images.read import list_images


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


# ------------------------------------------------------------------------------------------------------------ the table

MEASURED = {
    "inpaint": {"mask": "random", "share": 0.3},
    "outpaint": {"margin": 1},
    "colorize": {},
    "upscale": {"factor": "2x4"},
    "deblur": {"blur": 1.0},
    "compressed-sensing": {"share": 0.4},
}


def test_reading_the_table_imports_no_torch():
    code = "import sys, unistep.editing.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", TASKS)
def test_options_are_the_fields_of_the_class(name):
    row = TASKS[name]
    assert row.options == tuple(field.name for field in dataclasses.fields(row.implementation))
    assert {"steps", "timesteps", "sigmas"} <= set(row.options)
    assert ("settle" in row.options) == (row.kind == "measurement")
    assert ("candidates" in row.options) == (row.kind != "path")


def test_options_have_tasks():
    assert tasks_with("share") == ["inpaint", "compressed-sensing"]
    assert tasks_with("stops") == ["walk"] and tasks_with("nothing") == []
    assert {name: measurement_options(name) for name in MEASUREMENT_TASKS} == {
        "inpaint": ("mask", "share"),
        "outpaint": ("margin",),
        "colorize": (),
        "upscale": ("factor",),
        "deblur": ("blur",),
        "compressed-sensing": ("share",),
    }


@pytest.mark.parametrize("name", MEASUREMENT_TASKS)
def test_the_operator_of_any_image_is_that_of_a_whole_one(name):
    """By which a search measures images that it has in memory."""
    model = EditModel(lambda x, sigma, labels=None: x, ModelInfo(), (3, 8, 8), 0, torch.device("cpu"))
    options = MEASURED[name] | ({} if name == "outpaint" else {"degrade": True})
    task = make_task(name, options)
    pixels = torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    (image,) = list_images(pixels[:, 1:-1, 1:-1] if name == "outpaint" else pixels)
    given = task.read(EditContext(model, seed=5), image, 0)
    operator = task.operator_of_any(EditContext(model, seed=5))
    assert operator.name == given.operator.name and operator.name.startswith(task.operator_name)
    torch.testing.assert_close(operator.A(to_float(pixels)[None]), given.y)
