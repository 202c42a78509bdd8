"""`unistep.train` from Python: what it takes, and the run that it returns."""

import inspect
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import unistep
from unistep.cli.parameter import parameters_of
from unistep.config import find_recipe, read_values, run_config
from unistep.errors import UserError
from unistep.runtime.interrupt import Interrupted
from unistep.training import saving, trainer
from unistep.workflows.train import Run, train

TINY = {"block_out_channels": [8, 8], "attention_head_dim": 8}
SHORT = {"steps": 2, "batch_size": 2, "checkpoint_every": 1}

pytestmark = pytest.mark.usefixtures("no_accelerator_left")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Six grey images of 8 x 8 pixels in a folder."""
    folder = tmp_path_factory.mktemp("photos")
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def quick(photos, tmp_path):
    """quick(**arguments): `mnist-quick`, made tiny."""

    def run(*recipe, **arguments):
        usual = {"data": photos, "output": tmp_path / "run", "network": TINY, "teacher": SHORT, "student": SHORT}
        return unistep.train(*(recipe or ("mnist-quick",)), progress=False, **(usual | arguments))

    return run


# ------------------------------------------------------------------------------------------------------ what it takes


def test_a_recipe_with_data_and_changes(quick, photos, capsys):
    run = quick(data={"source": str(photos), "flip": True}, seed=3, student=SHORT | {"optimizer": {"lr": 1e-5}})
    config = run.config
    assert (config.data.source, config.data.flip, config.seed) == (str(photos), True, 3)
    assert config.stage("student").optimizer.lr == 1e-5 and config.stage("student").optimizer.name == "adamw"
    assert capsys.readouterr() == ("", "")  # nothing is printed where progress is off


def test_a_config_is_a_recipe(quick):
    recipe = run_config(read_values(find_recipe("mnist-ct")))
    run = quick(recipe, teacher=None)
    assert run.stages == ("student",) and run.config.description == recipe.description


def test_the_folder_is_named_after_the_recipe(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert quick(output=None, stages={"student": None}).folder == Path("runs", "mnist-quick")


def test_a_teacher_by_name_takes_the_place_of_the_stage(quick, tmp_path):
    first = quick(stages={"student": None})
    assert first.stages == ("teacher",)
    second = quick("mnist-cd", teacher=first.folder, output=tmp_path / "cd", noise_embedding=None)
    assert second.stages == ("student",)
    assert second.config.stage().teacher == str(first.folder / "teacher")


def test_stages_by_keyword(quick):
    """As in a recipe; and one more of them."""
    more = {"method": "ict", "init": "student"} | SHORT
    run = quick(stages={"student": SHORT | {"objective": {"q": 4.0}}, "tuned": more})
    assert run.stages == ("teacher", "student", "tuned")
    assert run.config.stage("student").objective.q == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"studnet": {"steps": 3}}, "unknown key studnet; did you mean student"),
        ({"student": {"stepz": 3}}, "unknown key student.stepz; did you mean student.steps"),
        ({"student": {"steps": 0}}, "`student.steps` 0 must be at least 1"),
        ({"student": {"optimizer": {"name": "adam"}}}, "`student.optimizer.name` adam: must be one of radam, adamw"),
        ({"student": 3}, "`student` 3: it has keys of its own, as `student.steps`"),
        ({"seed": "a"}, "`seed` a: expected int"),
        ({"data": {"sauce": "x"}}, "unknown key data.sauce; did you mean data.source"),
        ({"skip_to": "student"}, "`skip_to` is for a run that has begun; `resume` it"),
        ({"resume": "x"}, "give a recipe, as mnist-quick, or a run to `resume`, not both"),
    ],
)
def test_mistakes_are_one_line(quick, tmp_path, arguments, message):
    with pytest.raises(UserError, match=f"^{message}[^\n]*$"):
        quick(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_wrong_types_are_one_line(tmp_path):
    """In a process of its own: here the annotations are checked too."""
    given = [{"data": 3}, {"teacher": 3.5}, {"output": ["x"]}, {"skip_to": 3}, {"progress": "yes"}, {"recipe": 3}]
    given += [{"recipe": None, "resume": 3}, {"data": True}, {"teacher": b"x"}]
    code = f"""
import unistep
for arguments in {given!r}:
    try:
        unistep.train(**{{"recipe": "mnist-quick"}} | arguments)
    except unistep.UserError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines, names = done.stdout.splitlines(), [list(arguments)[-1] for arguments in given]
    assert [line.split(" ")[0] for line in lines] == [f"`{name}`" for name in names]
    assert lines[0] == "`data` is of type int; give a path"
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home_folder(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert quick(output="~/runs/one", stages={"student": None}).folder == tmp_path / "runs" / "one"
    assert unistep.train(resume="~/runs/one", progress=False).stages == ("teacher",)
    assert not (tmp_path / "~").exists()


def test_a_run_is_trained_in_a_thread(quick):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(quick(stages={"student": None})))
    thread.start()
    thread.join()
    assert runs[0].stages == ("teacher",)


def test_no_recipe(tmp_path):
    with pytest.raises(UserError, match="give a recipe, as mnist-quick, or a run to `resume`$"):
        train()
    with pytest.raises(UserError, match="is not a run directory: .*config.yaml is missing"):
        train(resume=tmp_path)


def test_the_command_line_has_the_arguments_of_the_function():
    names = [name for name, p in inspect.signature(train).parameters.items() if p.kind is not p.VAR_KEYWORD]
    assert [p.name for p in parameters_of(train)] == names
    assert all(p.text for p in parameters_of(train))


# ------------------------------------------------------------------------------------------------------- what it gives


def test_the_run(quick):
    run = quick()
    assert repr(run) == f"Run({run.folder}: teacher 2/2, student 2/2)"
    assert run.stages == ("teacher", "student")
    assert [step for step, _ in run.curves["student"]["loss"]] == [2]
    assert run.curves["teacher"].keys() == {"loss", "lr", "images_per_second", "seconds", "images", "grad_norm"}
    assert (run.model().info.kind, run.model("teacher").info.kind) == ("consistency", "diffusion")
    assert run.best is None and run.preview == run.folder / "student" / "samples" / "step-00000002.png"
    assert run._repr_png_() == run.preview.read_bytes()
    assert repr(run) in run._repr_html_() and "data:image/png;base64," in run._repr_html_()
    with pytest.raises(UserError, match="there is no stage studnet; the run has teacher, student"):
        run.model("studnet")
    assert Run(run.folder) == run  # also later, by its folder


def test_the_model_of_a_run_has_a_card_with_a_picture(quick):
    model = quick().folder / "student" / "model"
    card = (model / "README.md").read_text()
    for line in (
        "- Method: easy consistency tuning (ECT)",
        "- Images: 8 x 8 pixels, grey",
        "- unconditional-image-generation",
    ):
        assert line in card.splitlines()
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["network"]["sample_size"] == 8
    assert (model / "samples.png").read_bytes() == next((model.parent / "samples").iterdir()).read_bytes()


def test_a_run_that_has_just_begun(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(trainer.Trainer, "run", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        quick()
    run = Run(tmp_path / "run")
    assert repr(run).endswith("teacher 0/2, student 0/2)")
    assert run.curves == {"teacher": {}, "student": {}} and run.preview is None and run._repr_png_() is None
    assert "<img" not in run._repr_html_()
    with pytest.raises(UserError, match="is a run without a checkpoint yet"):
        run.model()


# ------------------------------------------------------------------------------------------------- to go on with a run


def test_a_run_goes_on_with_what_was_changed(quick):
    run = quick()
    again = unistep.train(resume=run.folder, student={"steps": 3, "optimizer": {"lr": 1e-5}}, progress=False)
    assert again == run and again.config.stage("student").steps == 3
    assert again.config.stage("student").optimizer.warmup_steps == 100  # of the recipe
    assert [step for step, _ in again.curves["student"]["loss"]] == [2, 3]
    (entry,) = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    assert entry["changed"] == {"student.steps": [2, 3], "student.optimizer.lr": [5e-4, 1e-5]}
    with pytest.raises(UserError, match="`network.dropout` 0.5: the run has 0.0, and all its stages share it"):
        unistep.train(resume=run.folder, network={"dropout": 0.5}, progress=False)


def test_a_signal_leaves_a_run_that_can_be_sampled(quick, tmp_path, monkeypatch, caplog):
    """In the middle of a stage; what is sampled says that it is not finished."""
    caplog.set_level(logging.INFO, "unistep")
    save = saving.save_checkpoint

    def stopped(folder, step, *arguments):
        save(folder, step, *arguments)
        if folder.parent.name == "student":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(saving, "save_checkpoint", stopped)
    with pytest.raises(Interrupted) as caught:
        quick(student=SHORT | {"steps": 50})
    assert caught.value.__notes__ == [f"go on with unistep.train(resume={str(tmp_path / 'run')!r})"]
    run = Run(tmp_path / "run")
    # The checkpoint is written beside the training, which is some steps further when the signal comes.
    (done,) = [number for number in range(1, 50) if repr(run).endswith(f"teacher 2/2, student {number}/50)")]
    model = run.model()
    assert model.info.kind == "consistency" and "is not finished" in caplog.messages[-1]
    images = unistep.sample(run.folder, num_images=2, progress=False)
    assert images.pixels.shape == (2, 1, 8, 8) and f"of step {done} of 50" in caplog.messages[-1]


# ------------------------------------------------------------------------------------------------------------- dry run


def test_a_dry_run_is_an_estimate(quick, tmp_path):
    found = quick(dry_run=True, data={"source": "nowhere", "resolution": 8})
    assert list(tmp_path.iterdir()) == []
    assert repr(found).startswith("Estimate(run: teacher, student, ")
    assert found.hours and found.hours == sum(stage.hours for stage in found.stages)
    values = found.to_dict()
    assert json.loads(json.dumps(values))["stages"][1]["name"] == "student"
    assert values["stages"][0]["parameters"] == found.stages[0].parameters
    for words in ("easy consistency", "images a second", "in all", "optimizer, its moments"):
        assert words in str(found) and words in found._repr_html_()
