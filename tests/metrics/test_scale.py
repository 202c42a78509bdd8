"""The Frechet distance of kept features: fast, and in memory that does not depend on how many there are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("evaluate_cached.py")


def measured(count: int, folder: Path) -> tuple[float, float]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # threads that wait for a busy core would count as work
    for phase in ("fill", "measure"):
        command = [sys.executable, str(SCRIPT), str(count), str(folder), phase]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    seconds, gigabytes = map(float, done.stdout.split())
    return seconds, gigabytes


@pytest.mark.slow
def test_fifty_thousand_and_ten_times_as_many(tmp_path):
    """Under 1 GB and 20 s of computing, which are 10 on two cores; ten times the images take about ten times as long.

    Seconds of computing, for other tests run beside it.
    """
    seconds, gigabytes = measured(50_000, tmp_path / "few")
    assert seconds < 20
    assert gigabytes < 1
    more_seconds, more_gigabytes = measured(500_000, tmp_path / "many")
    assert more_seconds < 12 * seconds
    assert more_gigabytes < gigabytes + 0.1  # of which 32 MB are the pixels
