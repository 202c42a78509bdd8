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


def check(folder: Path, *parts: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, str(SCRIPT), str(folder), "ct", *parts]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert losses(folder / "many") == pytest.approx(losses(folder / "one"), rel=1e-5)
    seen: dict[int, list[int]] = {}
    for file in (folder / "many").glob("seen-*"):
        for line in file.read_text().splitlines():
            step, images = json.loads(line)
            seen.setdefault(step, []).extend(images)
    assert sorted(seen) == list(range(16))
    for epoch in range(4):
        assert sorted(sum((seen[4 * epoch + i] for i in range(4)), [])) == list(range(IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        ["ddp:4:5", "ddp:2:9", "ddp:3:14", "ddp:1:16"],
        ["fsdp:4:5", "fsdp:2:9", "fsdp:3:14", "ddp:1:16"],
        ["ddp:2:5", "fsdp:2:11", "ddp:2:16"],
    ],
)
def test_processes_and_engines_may_change(parts, tmp_path):
    """Each part begins in the middle of a line of the log."""
    check(tmp_path, *parts)
