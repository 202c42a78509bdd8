"""Training on a GPU: the losses of the CPU, compiled or not, recorded or not; masks shared by student and target.

Each training is a process of its own, all at the same time: the checks of types at run time that the tests switch on
cannot be compiled.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unistep.objectives.consistency import ConsistencyConfig, ConsistencyObjective

_NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, _NO_GPU])])

_SCRIPT = """
import json, sys, unistep
folder, precision, compile, teacher = sys.argv[1:]
small = {"block_out_channels": [32, 32], "attention_head_dim": 8, "norm_num_groups": 4, "attn_norm_num_groups": 4}
short = {"steps": 6, "batch_size": 16, "log_every": 1}
more = {} if compile == "none" else {"compile": compile}
more |= {"teacher": short if teacher else "null"}
run = unistep.train(
    "mnist-quick", output=folder, progress=False, precision=precision, network=small, student=short, **more,
)
print(json.dumps({stage: [loss for _, loss in curves["loss"]] for stage, curves in run.curves.items()}))
"""
RUNS = {
    "cpu": ("", "fp32", "none"),
    "gpu": ("0", "fp32", "none"),
    "gpu compiled": ("0", "fp32", "network"),
    "gpu recorded": ("0", "fp32", "graph"),
    "gpu recorded bf16": ("0", "bf16", "graph"),
}


def start(folder: Path, gpu: str, precision: str, compile: str, teacher: str = "yes") -> subprocess.Popen[str]:
    """A training in a process; `gpu` is the device that it sees, none if empty, and so is `teacher`."""
    command = [sys.executable, "-c", _SCRIPT, str(folder), precision, compile, teacher]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu} if not gpu else dict(os.environ)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def losses(process: subprocess.Popen[str]) -> dict[str, list[float]]:
    """Losses of both stages, by step."""
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors[-2000:]
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    processes = {name: start(folder / name.replace(" ", "-"), *run) for name, run in RUNS.items()}
    yield processes
    for process in processes.values():
        process.kill()


@pytest.fixture(scope="module")
def result(trained):
    """result(name): losses of a run, waited for once."""
    found: dict[str, dict[str, list[float]]] = {}

    def get(name: str) -> dict[str, list[float]]:
        if name not in found:
            found[name] = losses(trained[name])
        return found[name]

    return get


def agree(a: dict[str, list[float]], b: dict[str, list[float]], rtol: float) -> None:
    assert a.keys() == b.keys() and {len(v) for v in a.values()} == {6}
    for stage in a:
        assert a[stage] == pytest.approx(b[stage], rel=rtol)


@pytest.mark.gpu
@_NO_GPU
@pytest.mark.parametrize(
    "name, rtol",
    [("gpu", 2e-3), ("gpu compiled", 2e-3), ("gpu recorded", 2e-3), ("gpu recorded bf16", 0.1)],
)
def test_losses_are_those_of_the_cpu(result, name, rtol):
    agree(result(name), result("cpu"), rtol)


@pytest.mark.gpu
@_NO_GPU
def test_recorded_steps_are_those_that_run_as_they_are(result):
    agree(result("gpu recorded"), result("gpu compiled"), 1e-4)
    agree(result("gpu recorded"), result("gpu"), 1e-3)


@pytest.mark.slow
def test_a_training_in_a_process(tmp_path):
    """What the tests above compare, where there is no GPU."""
    found = losses(start(tmp_path / "run", *RUNS["cpu"], teacher=""))
    agree(found, found, 0)


@DEVICES
def test_student_and_target_drop_the_same_units(lively, device):
    student = lively(dropout=0.5, sample_size=16).train().to(device)

    def denoise(x_t, sigma, class_labels=None, *, generator=None):
        return student(x_t, sigma.log() / 4, class_labels, generator=generator)

    objective = ConsistencyObjective(ConsistencyConfig(sigma_min=0.0), 10)
    x = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    t = torch.full((8,), 2.0, device=device)
    same = objective.loss_at(denoise, x, None, t, t, torch.zeros_like(x), 5)
    near = objective.loss_at(denoise, x, None, t, t - 1.0, torch.zeros_like(x), 5)
    assert same.max() < 1e-8 < near.min()
    again = denoise(x, t, generator=torch.Generator(device).manual_seed(1))
    other = denoise(x, t, generator=torch.Generator(device).manual_seed(2))
    assert (again - other).square().mean() > 1e-4  # masks that differ would have shown
