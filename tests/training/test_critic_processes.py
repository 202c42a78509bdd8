"""Student and critic of DMD2: on two processes as on one, with accumulation, and after a resume."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from unistep.runtime.interrupt import Interrupted

SCRIPT = Path(__file__).with_name("critic_weights.py")
build = runpy.run_path(str(SCRIPT))["build"]
pytestmark = pytest.mark.usefixtures("no_accelerator_left")


def run(file: Path, *launcher: str) -> dict[str, torch.Tensor]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, *launcher, str(SCRIPT), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return torch.load(file, weights_only=True)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    one = run(tmp_path / "one.pt")
    two = run(tmp_path / "two.pt", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    assert one.keys() == two.keys()
    for kind in ("student", "critic", "student gradient", "critic gradient"):
        keys = sorted(key for key in one if key.startswith(f"{kind}/"))
        a, b = (torch.cat([found[key].flatten().double() for key in keys]) for found in (one, two))
        assert a.norm() > 1e-3 and (a - b).norm() <= 1e-6 * a.norm(), kind


@pytest.mark.slow
def test_accumulation_changes_nothing(tmp_path):
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    weights = []
    for accumulation in (1, 2):
        trainer, objective = build(tmp_path / str(accumulation), accelerator, accumulation)
        trainer.run()
        both = (*trainer.student.parameters(), *objective.critic.parameters())
        weights.append(torch.cat([p.detach().flatten().double() for p in both]))
    assert (weights[0] - weights[1]).norm() <= 1e-6 * weights[0].norm()


@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_run_is_the_uninterrupted_one(stop, tmp_path):
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    whole, of_whole = build(tmp_path / "whole", accelerator)
    averaged = whole.run().state_dict()
    cut, of_cut = build(tmp_path / "cut", accelerator)
    own = of_cut.loss

    def loss(student, x, labels, step, random, seed):
        if step == stop - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(student, x, labels, step, random, seed)

    of_cut.loss = loss
    with pytest.raises(Interrupted):
        cut.run()
    resumed, of_resumed = build(tmp_path / "cut", accelerator)
    again = resumed.run().state_dict()
    assert resumed.step == whole.step == 4
    for a, b in (
        (averaged, again),
        (whole.student.state_dict(), resumed.student.state_dict()),
        (of_whole.state_dict(), of_resumed.state_dict()),
    ):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    moments = [one.optimizer.state_dict()["state"] for one in (whole, resumed)]
    assert moments[0].keys() == moments[1].keys()
    for number, state in moments[0].items():
        assert all(torch.equal(value, moments[1][number][key]) for key, value in state.items())
