"""`max_minutes` of `unistep.train`: it ends with a model that can be used, and the run goes on exactly from there."""

import logging
import os
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import unistep
from unistep.cli.main import main
from unistep.errors import UserError
from unistep.training.trainer import Trainer

TINY = {"block_out_channels": [8, 8], "attention_head_dim": 8, "dropout": 0.1}
SHORT = {"steps": 6, "batch_size": 2, "checkpoint_every": 4, "sample_every": 0, "log_every": 1}
SCRIPT = Path(__file__).parent / "runs" / "train_process.py"

pytestmark = pytest.mark.usefixtures("no_accelerator_left")


@pytest.fixture
def quick(data, tmp_path):
    """quick(name="run", **arguments): `mnist-quick`, made tiny."""
    images = data()

    def run(name: str = "run", **arguments):
        usual = {"data": images.source, "output": tmp_path / name, "network": TINY, "teacher": SHORT, "student": SHORT}
        return unistep.train("mnist-quick", progress=False, **(usual | arguments))

    return run


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Minutes since the beginning: every step of a training takes one."""
    now, step = [0.0], Trainer.train_step

    def slow(self, number):
        now[0] += 1.0
        return step(self, number)

    monkeypatch.setattr(time, "monotonic", lambda: 60 * now[0])
    monkeypatch.setattr(Trainer, "train_step", slow)
    return now


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run / stage / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_three_visits_make_the_uninterrupted_run(quick, clock, tmp_path, caplog):
    caplog.set_level(logging.INFO, "unistep")
    whole = quick("whole")
    run = quick(max_minutes=3)
    folder = tmp_path / "run"
    note = f"teacher: the time is up after step 3 of 6; its model so far is {folder}/teacher/model; go on with: "
    assert note + f"unistep train `resume={folder}`" in caplog.messages
    assert not run.finished and repr(run).endswith("teacher 3/6, student 0/6)") and not (folder / "student").exists()
    model = unistep.load(folder / "teacher" / "model")
    assert "step 3 of 6" in (model.path / "README.md").read_text()
    assert len(unistep.sample(run.folder, num_images=2, progress=False, steps=3)) == 2
    early = weights(folder, "teacher")
    # The second visit ends in the next stage.
    run = unistep.train(resume=folder, max_minutes=5, progress=False)
    assert not run.finished and repr(run).endswith("teacher 6/6, student 2/6)")
    assert same(weights(folder, "teacher"), weights(tmp_path / "whole", "teacher"))
    assert not same(early, weights(folder, "teacher"))
    assert run.model().info.kind == "consistency"
    run = quick()  # the same call goes on as well
    assert run.finished and whole.finished
    for stage in run.stages:
        assert same(weights(folder, stage), weights(tmp_path / "whole", stage))
    assert run.curves["student"]["loss"] == whole.curves["student"]["loss"]
    files = ("config.yaml", "data.json")
    assert [(folder / f).read_bytes() for f in files] == [(tmp_path / "whole" / f).read_bytes() for f in files]
    assert not (folder / "history.jsonl").exists()


def test_time_that_ends_with_a_stage_begins_no_other(quick, clock, tmp_path, caplog):
    caplog.set_level(logging.INFO, "unistep")
    run = quick(max_minutes=6)
    assert "student: not begun, the time is up; go on with: " in caplog.messages[-1]
    assert repr(run).endswith("teacher 6/6, student 0/6)") and not (tmp_path / "run" / "student").exists()
    # A visit always makes a step, or a run of short ones would never come to an end.
    assert repr(quick(max_minutes=0)).endswith("student 1/6)")


def test_the_models_of_phases(saved, data, tmp_path, clock):
    """The model so far is sampled in the steps of the phase that made it."""
    stage = {"steps": 6, "batch_size": 2, "sample_every": 0, "objective": {"start_scales": 4, "end_scales": 1}}
    given = {"data": data().source, "network": None, "noise_embedding": None, "teacher": saved(), "student": stage}
    run = unistep.train("mnist-pd", output=tmp_path / "run", progress=False, max_minutes=3, **given)
    info = unistep.load(run.folder / "student" / "model").info
    assert (info.solver, info.steps) == ("progressive", 2)
    assert unistep.train(resume=run.folder, progress=False).model().info.steps == 1


@pytest.mark.parametrize("minutes", [-1, "soon", float("nan")])
def test_minutes_that_are_none(quick, tmp_path, minutes):
    with pytest.raises(UserError, match="^`max_minutes` [^\n]*$"):
        quick(max_minutes=minutes)
    assert not (tmp_path / "run").exists()


def test_the_command(data, tmp_path, capsys, clock):
    sizes = [
        f"--{stage}.{key.replace('_', '-')}={value}" for stage in ("teacher", "student") for key, value in SHORT.items()
    ]
    tiny = ["--network.block-out-channels=8,8", "--network.attention-head-dim=8", f"--data={data().source}", *sizes]
    run = tmp_path / "run"
    main(["train", "mnist-quick", *tiny, "--output", str(run), "--max-minutes", "8", "--no-progress"])
    out, err = capsys.readouterr()
    assert out.startswith(f"not finished: Run({run}: teacher 6/6, student 2/6)\n") and "done" not in out
    assert f"go on with: unistep train --resume {run}\n" in err
    main(["train", "--resume", str(run), "--no-progress"])
    assert capsys.readouterr().out.startswith(f"done: {run}/student/model\n")


@pytest.mark.slow
def test_several_processes_stop_at_the_same_step(data, tmp_path, start_script):
    """Also where the clock of one of them is ahead."""
    images = data()
    run, sizes = tmp_path / "run", [f"--student.{key}={value}" for key, value in (SHORT | {"steps": 100_000}).items()]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank, minutes in enumerate(("0.05", "10")):
        words = [
            "mnist-ict",
            f"--data={images.source}",
            "--network.block-out-channels=8,8",
            "--network.attention-head-dim=8",
        ]
        words += [*sizes, "--output", str(run), "--max-minutes", minutes, "--no-progress"]
        names = {"arguments": words, "said": str(tmp_path / f"said-{rank}"), "rank": rank, "processes": 2, "port": port}
        started.append(start_script(SCRIPT, **names))
    for process in started:
        process.join(120)
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert [process.exitcode for process in started] == [0, 0], said
    assert "the time is up after step" in said[0] and "time" not in said[1]
    assert (run / "student" / "model" / "model_index.json").is_file()
    assert len(os.listdir(run / "student" / "checkpoints")) >= 2
