"""Models by name, and how each is sampled by default."""

import shutil
from dataclasses import replace

import pytest

from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.formats.model_folder.folder import load_model
from unistep.generation.plan import DiffusionPlan, default_plan
from unistep.workflows.models import EMBEDDED, EMBEDDED_TEACHER, open_any

# --------------------------------------------------------------------------------------------------------------- plans


def test_a_model_is_sampled_by_its_own_schedule():
    own = ModelInfo("consistency", timesteps=(0, 23), num_train_timesteps=40)
    other = replace(own, timesteps=(0, 5))
    assert default_plan(own).nfe == 1
    assert default_plan(own, 2) != default_plan(other, 2)
    assert default_plan(own, 3) == default_plan(other, 3)
    more = replace(own, schedules=((0, 4, 30), (0, 1, 2, 3)))
    assert default_plan(more, 2) == default_plan(own, 2)
    assert default_plan(more, 3) == default_plan(replace(own, timesteps=(0, 4, 30)), 3) != default_plan(own, 3)
    assert default_plan(more, 4) == default_plan(replace(own, timesteps=(0, 1, 2, 3)), 4)
    assert default_plan(more, 5) == default_plan(own, 5)
    diffusion = ModelInfo("diffusion", sigma_min=0.01, sigma_max=50, rho=5)
    assert default_plan(diffusion) == DiffusionPlan("heun", 18, 0.01, 50, 5)
    assert default_plan(diffusion, 4) == DiffusionPlan("heun", 4, 0.01, 50, 5)


def test_a_distilled_model_is_sampled_as_it_was_distilled():
    distilled = ModelInfo("diffusion", sigma_min=0.01, sigma_max=50, rho=5, solver="progressive", steps=4)
    assert default_plan(distilled) == DiffusionPlan("progressive", 4, 0.01, 50, 5)
    assert default_plan(distilled).nfe == 4
    assert default_plan(distilled, 2) == DiffusionPlan("progressive", 2, 0.01, 50, 5)
    assert default_plan(replace(distilled, steps=None)) == DiffusionPlan("progressive", 18, 0.01, 50, 5)


# ----------------------------------------------------------------------------------------------------- where models are


def test_the_embedded_models_are_there():
    assert open_any(None).path == EMBEDDED
    assert load_model(EMBEDDED).info.kind == "consistency"
    assert load_model(EMBEDDED_TEACHER).info.kind == "diffusion"


def test_a_model_is_found_by_its_folder_its_stage_and_its_run(saved, tmp_path):
    run = tmp_path / "run"
    for stage in ("teacher", "student"):
        shutil.copytree(saved(), run / stage / "model")
    assert open_any(str(run / "teacher" / "model")).path == run / "teacher" / "model"
    assert open_any(str(run / "teacher")).path == run / "teacher" / "model"
    assert open_any(str(run)).path == run / "student" / "model"
    shutil.rmtree(run / "student")
    assert open_any(str(run)).path == run / "teacher" / "model"


def test_no_model_is_said_with_what_to_do(tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").touch()
    (tmp_path / "file").touch()
    for name, message in (
        ("begun", "a run without a checkpoint yet; resume its training"),
        ("nowhere", "does not exist; give a"),
        (".", "is not a model folder: it holds no model_index.json"),
        ("file", "is empty; fetch it again"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            open_any(str(tmp_path / name))
        assert str(tmp_path / name) in str(refused.value) and "\n" not in str(refused.value)
