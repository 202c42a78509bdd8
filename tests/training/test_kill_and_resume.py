"""A run killed at any instant and resumed ends in the weights of the uninterrupted run, to the bit."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unistep.cli.main import main
from unistep.data import open_dataset

DEADLINE = 120
STAGES = ("teacher", "student")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe of both stages that trains in seconds: dropout, guidance, an EMA target, Muon, flips and evaluations."""
    folder = tmp_path_factory.mktemp("recipe")
    digits = open_dataset("mnist-test")
    np.savez(folder / "digits.npz", digits.images[:96].numpy(), digits.labels[:96].numpy())
    stage = "{steps: 60, batch_size: 8, checkpoint_every: 4, log_every: 3, sample_every: 1000"
    (folder / "tiny.yaml").write_text(f"""
data: {{source: {folder / "digits.npz"}, flip: true}}
network:
  name: patched-adm
  patch_size: 4
  block_out_channels: [16]
  down_block_types: [DownBlock2D]
  up_block_types: [UpBlock2D]
  layers_per_block: 1
  norm_num_groups: 4
  attn_norm_num_groups: 4
  attention_head_dim: 16
  dropout: 0.1
stages:
  teacher: {stage}, method: edm, objective: {{label_dropout: 0.1}}}}
  student: {stage}, method: cd, init: teacher, objective: {{step: same-noise, guidance: 1.5}},
    optimizer: {{name: muon}}}}
evaluate_every: 7
evaluation: {{num_images: 32, reference_images: 64}}
""")
    return folder / "tiny.yaml"


def start(*arguments: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-m", "unistep", "train", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_steps(run: Path, stage: str, steps: int, process: subprocess.Popen) -> None:
    """Returns once the log of the stage has reached `steps`."""
    log, end = run / stage / "metrics.jsonl", time.monotonic() + DEADLINE
    while time.monotonic() < end and process.poll() is None:
        if log.exists() and any(line and json.loads(line)["step"] >= steps for line in whole_lines(log)):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise AssertionError(f"{stage} never reached step {steps}: {process.communicate()[1]}")


def whole_lines(log: Path) -> list[str]:
    return log.read_text().split("\n")[:-1]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the models of both stages and of the best one."""
    found: dict[str, torch.Tensor] = {}
    for model in (*(f"{stage}/model" for stage in STAGES), "student/best"):
        state = load_file(run / model / "unet" / "diffusion_pytorch_model.safetensors")
        found |= {f"{model}.{name}": tensor for name, tensor in state.items()}
    return found


def evaluations(run: Path) -> list[tuple[int, float]]:
    """Steps and kernel distances of the log."""
    lines = [json.loads(line) for line in whole_lines(run / "student" / "metrics.jsonl")]
    return [(line["step"], line["KD-MNIST"]) for line in lines if "KD-MNIST" in line]


def assert_same_outcome(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert evaluations(a) == evaluations(b)


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    process = start(str(recipe), "--output", str(run))
    assert process.wait(DEADLINE) == 0, process.communicate()
    # The best is somewhere in the middle: else `best/` would be no other than `model/`.
    measured = evaluations(run)
    assert [step for step, _ in measured] == [*range(7, 60, 7), 60]
    assert min(measured, key=lambda each: each[1])[0] < 60
    return run


@pytest.mark.parametrize(
    ("kill", "stage"),
    [
        pytest.param(0, "teacher", marks=pytest.mark.slow),
        pytest.param(1, "student", marks=pytest.mark.slow),
        pytest.param(2, "student", marks=pytest.mark.slow),
    ],
)
def test_sigkill_at_a_random_moment(kill, stage, recipe, uninterrupted, tmp_path):
    run = tmp_path / "run"
    process = start(str(recipe), "--output", str(run))
    wait_for_steps(run, stage, random.Random(kill).randrange(3, 50), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait(DEADLINE) == -signal.SIGKILL

    resumed = start("--resume", str(run))
    output, errors = resumed.communicate(timeout=DEADLINE)
    assert resumed.returncode == 0, errors
    assert_same_outcome(run, uninterrupted)
    for each in STAGES:
        lines = [json.loads(line) for line in whole_lines(run / each / "metrics.jsonl")]
        steps = [line["step"] for line in lines if "loss" in line]
        assert steps == list(range(3, 61, 3))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_writes_a_checkpoint_and_says_how_to_resume(number, code, recipe, uninterrupted, tmp_path):
    run = tmp_path / "run"
    process = start(str(recipe), "--output", str(run))
    wait_for_steps(run, "student", 9, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, errors
    assert errors.strip().splitlines()[-1].endswith(f"unistep train --resume {run}")
    resumed = start("--resume", str(run))
    assert resumed.wait(DEADLINE) == 0, resumed.communicate()
    assert_same_outcome(run, uninterrupted)


def test_a_finished_run_is_left_alone(uninterrupted, capsys):
    before = {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*") if p.is_file()}
    main(["train", "--resume", str(uninterrupted)])
    assert {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*") if p.is_file()} == before
    out, err = (text.splitlines() for text in capsys.readouterr())
    assert "finished before" in err[0] and out[-1] == f"the best by its evaluations: {uninterrupted / 'student/best'}"


def test_a_damaged_checkpoint_is_named(recipe, uninterrupted, tmp_path, capsys):
    """The one before is taken, and the run ends as ever; where all are damaged, that is all."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    shutil.rmtree(run / "student" / "model")
    former, newest = sorted((run / "student" / "checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    main(["train", "--resume", str(run)])
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("warning: ")]
    assert str(newest) in line
    assert_same_outcome(run, uninterrupted)

    shutil.rmtree(run / "student" / "model")
    for path in (former, newest):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--resume", str(run)])
    assert stopped.value.code == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("unistep: error")]
    assert str(newest) in line and "the 1 before it too" in line
