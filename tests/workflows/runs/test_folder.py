"""Run directories: whose they are, what may change when a run goes on, and what has changed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unistep.config import RunConfig, StageConfig, dump, read_run, run_config
from unistep.data import DataConfig
from unistep.errors import UserError
from unistep.formats.checkpoint import save_checkpoint
from unistep.training.config import OptimizerConfig
from unistep.workflows.runs.folder import change_run, claim_folder, skip_to, steps_done


def a_run(**fields) -> RunConfig:
    teacher = StageConfig(name="teacher", method="edm", steps=10)
    student = StageConfig(name="student", method="ect", init="teacher", steps=20)
    return RunConfig(**({"stages": (teacher, student)} | fields))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def config_of(folder: Path) -> str:
    """The content of the folder's only file, without the line of its digest."""
    ((name, content),) = files(folder).items()
    digest, *lines = content.decode().splitlines(keepends=True)
    assert name == "config.yaml" and digest.startswith("# sha256 of ")
    return "".join(lines)


# ------------------------------------------------------------------------------------------------------ run directories


def test_a_run_claims_its_folder_and_finds_it_again(tmp_path):
    folder = tmp_path / "runs" / "a"
    claim_folder(folder, a_run(seed=1))
    assert config_of(folder) == dump(a_run(seed=1))
    (folder / "student").mkdir()
    claim_folder(folder, a_run(seed=1))


def test_a_claim_that_was_killed_is_taken_up(tmp_path):
    (tmp_path / "config.tmp").write_text("seed")
    claim_folder(tmp_path, a_run())
    assert config_of(tmp_path) == dump(a_run())


@pytest.mark.parametrize("name", ["config.yaml", "photo.png"])
def test_a_folder_of_something_else_is_left_untouched(tmp_path, name):
    (tmp_path / name).write_text(dump(a_run(seed=1)))
    (tmp_path / "student").mkdir()
    before = files(tmp_path)
    with pytest.raises(UserError, match="holds a run with another config|is not a run directory") as refused:
        claim_folder(tmp_path, a_run(seed=2))
    assert "choose another `output`" in str(refused.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_in_the_way_is_left_untouched(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="choose another `output`"):
        claim_folder(tmp_path / name, a_run())
    assert files(tmp_path) == {"file": b"mine"}


def test_what_differs_is_told(tmp_path):
    claim_folder(tmp_path, a_run())
    student = replace(a_run().stages[1], steps=7, optimizer=OptimizerConfig(lr=1e-5))
    other = a_run(seed=3, use_labels=False, data=DataConfig(flip=True), stages=(a_run().stages[0], student))
    message = (
        "another config: seed 0 instead of 3, use_labels true instead of false, data.flip false instead of true, "
        "student.steps 20 instead of 7 and 1 more; choose another `output`, `resume` it, or delete it"
    )
    with pytest.raises(UserError, match=message):
        claim_folder(tmp_path, other)


def test_words_about_a_run_are_no_difference(tmp_path):
    claim_folder(tmp_path, a_run())
    claim_folder(tmp_path, a_run(description="the same in other words"))


def test_a_run_of_the_former_form_is_the_same_run(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "teacher: {steps: 10}\nstudent: {steps: 20, objective: {pairs: mapping, distance: pseudo-huber, huber_c: 0.0, "
        "weighting: 1/(t-r), sigma_min: 0.0}}\n"
    )
    claim_folder(tmp_path, a_run())


# ------------------------------------------------------------------------------------------------------- to go on with


@pytest.fixture
def run(tmp_path):
    """run(teacher=10, student=5): the folder of a run whose stages have come so far."""

    def make(**steps: int) -> Path:
        claim_folder(tmp_path, a_run())
        for name, done in steps.items():
            save_checkpoint(tmp_path / name / "checkpoints", done, {"x": torch.zeros(1)}, keep=1)
        return tmp_path

    return make


def changed(name: str, **fields) -> RunConfig:
    stages = tuple(replace(stage, **fields) if stage.name == name else stage for stage in a_run().stages)
    return a_run(stages=stages)


def test_what_was_changed_is_written_down(run):
    folder = run(teacher=10, student=5)
    faster = replace(OptimizerConfig(), lr=1e-4)
    first, second = changed("student", steps=40), changed("student", steps=40, optimizer=faster)
    change_run(folder, a_run(), first)
    change_run(folder, first, first)  # nothing
    change_run(folder, first, second)
    assert run_config(read_run(folder)) == second
    entries = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [entry["changed"] for entry in entries] == [
        {"student.steps": [20, 40]},
        {"student.optimizer.lr": [4e-4, 1e-4]},
    ]
    assert entries[0]["steps"] == {"teacher": 10, "student": 5} and entries[0]["time"].endswith("+00:00")


@pytest.mark.parametrize(
    ("done", "new", "message"),
    [
        ({"teacher": 3}, a_run(seed=1), "`seed` 1: the run has 0, and all its stages share it"),
        ({"teacher": 3}, a_run(data=DataConfig(flip=True)), "`data.flip` true: the run has false, and all"),
        ({"teacher": 3}, a_run(noise_embedding="edm"), "`noise_embedding` edm: the run has null, and all"),
        ({"teacher": 3}, changed("teacher", ema_decays=(0.5,)), "`teacher.ema_decays` .* the stage has begun with it"),
        ({"teacher": 10, "student": 1}, changed("student", dropout=0.1), "`student.dropout` 0.1: .* has begun with it"),
        ({"teacher": 10, "student": 1}, changed("teacher", steps=20), "`teacher.steps` 20: .*student has begun after"),
    ],
)
def test_what_would_make_it_another_run_is_refused_by_name(run, done, new, message):
    folder = run(**done)
    before = files(folder)
    with pytest.raises(UserError, match=message) as refused:
        change_run(folder, a_run(), new)
    assert "\n" not in str(refused.value) and files(folder) == before


def test_a_stage_that_has_not_begun_may_change_as_it_likes(run):
    folder = run(teacher=3)
    method = StageConfig(name="student", method="cd", init="teacher", dropout=0.1, ema_decays=(0.5,))
    new = a_run(stages=(replace(a_run().stages[0], steps=30), method), evaluate_every=5)
    change_run(folder, a_run(), new)
    assert run_config(read_run(folder)) == new


def test_the_length_of_phases_is_fixed(run):
    folder = run(teacher=10, student=5)
    student = StageConfig(name="student", method="pd", init="teacher", steps=20)
    old = a_run(stages=(a_run().stages[0], student))
    with pytest.raises(UserError, match="`student.steps` 40: .*phases of its method follow the length"):
        change_run(folder, old, replace(old, stages=(old.stages[0], replace(student, steps=40))))


def test_stages_end_where_they_are(run):
    folder = run(teacher=4)
    found = skip_to(folder, a_run(), "student")
    assert [stage.steps for stage in found.stages] == [4, 20]
    assert steps_done(folder, found.stages[0]) == 4 and steps_done(folder, found.stages[1]) == 0
    with pytest.raises(UserError, match="there is no stage studnet; the run has teacher, student"):
        skip_to(folder, a_run(), "studnet")


def test_a_stage_without_a_checkpoint_cannot_end(run):
    with pytest.raises(UserError, match="`skip_to` student: the stage teacher has no checkpoint yet; .* 500 steps"):
        skip_to(run(), a_run(), "student")
