"""A run whose number of processes changes sees every image once an epoch, and has the loss of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("changing_processes.py")
IMAGES = 48


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_processes_may_change(tmp_path):
    """Four, two, three and one, each of which begins in the middle of a line of the log."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, str(SCRIPT), str(tmp_path), "ct", "4:5", "2:9", "3:14", "1:16"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    seen: dict[int, list[int]] = {}
    for file in (tmp_path / "many").glob("seen-*"):
        for line in file.read_text().splitlines():
            step, images = json.loads(line)
            seen.setdefault(step, []).extend(images)
    assert sorted(seen) == list(range(16))
    for epoch in range(4):
        assert sorted(sum((seen[4 * epoch + i] for i in range(4)), [])) == list(range(IMAGES))
