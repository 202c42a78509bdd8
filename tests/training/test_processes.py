"""A step has the same gradients on one process, on two with half the batch each, and with accumulation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("gradients.py")


def gradients(folder: Path, name: str, accumulation: int, processes: int) -> dict[str, torch.Tensor]:
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    launcher = several if processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, *launcher, str(SCRIPT), str(accumulation), str(folder / f"{name}.pt")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / f"{name}.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, torch.Tensor]:
    return gradients(tmp_path_factory.mktemp("whole"), "whole", 1, 1)


@pytest.mark.parametrize(("accumulation", "processes"), [(2, 1), (1, 2)])
def test_same_gradients(accumulation, processes, whole, tmp_path):
    split = gradients(tmp_path, "split", accumulation, processes)
    assert split.keys() == whole.keys()
    expected, found = (torch.cat([g[name].flatten().double() for name in sorted(whole)]) for g in (whole, split))
    assert expected.norm() > 0.01
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    # What the objective trains beside the student is averaged by the trainer itself.
    assert whole["objective"].norm() > 1e-4
    difference = split["objective"] - whole["objective"]
    assert difference.norm() <= 1e-6 * whole["objective"].norm()


@pytest.mark.slow
def test_methods_of_flow_maps_have_the_same_gradients(tmp_path):
    """Their derivative goes past the wrapped student, and what they draw belongs to each image."""
    script = SCRIPT.with_name("flow_gradients.py")
    found = {}
    for processes in (1, 2):
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if processes > 1 else []
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        file = tmp_path / f"{processes}.pt"
        command = [sys.executable, *several, str(script), str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found[processes] = torch.load(file, weights_only=True)
    assert found[1].keys() == found[2].keys()
    for name in ("tcm", "cmt", "meanflow", "imf", "soflow", "facm"):
        keys = sorted(key for key in found[1] if key.startswith(f"{name}/"))
        one, two = (torch.cat([found[n][key].flatten().double() for key in keys]) for n in (1, 2))
        assert one.norm() > 1e-4 and (one - two).norm() <= 1e-6 * one.norm(), name
