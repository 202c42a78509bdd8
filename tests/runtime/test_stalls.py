"""A process that hangs, or does not stop in time, ends with a line that tells where it is."""

import subprocess
import sys
import time

import pytest

from unistep.errors import UserError
from unistep.runtime.stalls import Watch
from unistep.training.limits import Limits

SCRIPT = """
import time
from unistep.runtime.stalls import Watch
with Watch({seconds}, 2, 4) as watch:
    watch.at(56)
    {then}
    time.sleep(20)
"""


def run(seconds: float | None, then: str = "") -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(seconds=seconds, then=then)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


def test_a_process_that_hangs():
    done = run(0.2)
    assert done.returncode == 1
    assert done.stderr == "unistep: error: process 2 of 4 hangs for 0 s, in step 57, outside of unistep\n"


def test_a_process_that_does_not_stop_in_time():
    done = run(None, 'watch.end_in(0.1, "has not stopped 0.1 s after SIGTERM", 143)')
    assert done.returncode == 143
    assert done.stderr.startswith("unistep: error: process 2 of 4 has not stopped 0.1 s after SIGTERM, in step 57")


READING = """
import subprocess, sys, time
from unistep.runtime.stalls import Watch

class Data:
    def waiting_for(self):
        {answer}
    def abandon(self):
        reader.kill()

reader = subprocess.Popen([sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"])
with Watch(0.2, 0, 1, Data()) as watch:
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("answer", "file"),
    [
        ("return 'a.tar/1.png'", ", waiting for a.tar/1.png"),
        ("return ''", ""),
        ("time.sleep(600)", ""),  # the name itself is on a disk that does not answer
        ("raise OSError", ""),
    ],
)
def test_a_process_that_waits_for_its_data_names_the_file(answer, file):
    """Its readers end with it: else the pipes that they share with it would stay open."""
    script = READING.format(answer=answer)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"unistep: error: the process hangs for 0 s, in step 1, outside of unistep{file}\n"


def test_one_that_comes_on_goes_on():
    with Watch(0.5) as watch:
        for step in range(8):
            watch.at(step)
            time.sleep(0.1)


@pytest.mark.parametrize("limits", [{"grace_seconds": 0}, {"stall_seconds": -1.0}, {"grace_seconds": 1e30}])
def test_times_are_positive_and_no_more_than_years(limits):
    with pytest.raises(UserError, match=f"`{next(iter(limits))}`"):
        Limits(**limits)
