"""Gradients have the same bits wherever they lie in their bucket."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mean_in_order import PROCESSES, numbers

SCRIPT = Path(__file__).with_name("mean_in_order.py")


@pytest.mark.slow
def test_sums_are_in_the_order_of_the_processes(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = numbers(0) / PROCESSES
    for rank in range(1, PROCESSES):
        expected += numbers(rank) / PROCESSES
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(found["plain"], expected) and torch.equal(found["moved"], expected)
