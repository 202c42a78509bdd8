"""Every method has the losses of one process on two, by either engine, for 50 steps.

They are the same to the bit if one process computes the same micro-batches, and the same but for rounding if it
computes the batch at once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unistep.objectives.methods import METHODS

SCRIPT = Path(__file__).with_name("method_losses.py")
STEPS = 50
# Losses of small differences, of two outputs or of neighbouring levels, show the rounding of the outputs enlarged. What
# is no rounding shows in fp64.
ENLARGED = {"ect": 1e-4, "ict": 1e-4, "stable-ct": 1e-4, "soflow": 1e-4, "tcm": 1e-3}


def curve(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name.startswith("loss")} for line in lines]


def most(method: str, precision: str) -> float:
    """The largest relative difference that is rounding."""
    return 1e-10 if precision == "fp64" else ENLARGED.get(method, 1e-5)


def curves(folder: Path, method: str, runs: str, steps: int, precision: str) -> list[list[dict[str, float]]]:
    """The losses of every step of some runs of a method; `runs` are those of the script."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, str(SCRIPT), str(folder), runs, str(steps), precision, method]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [curve(folder / f"{method}-{run.replace(':', '-')}") for run in runs.split(",")]
    assert [len(one) for one in found] == [steps] * len(found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_same_bits_as_one_process_with_the_same_micro_batches(method, tmp_path):
    one, *others = curves(tmp_path, method, "ddp:1:accumulated,ddp:2,fsdp:2", STEPS, "fp32")
    assert others == [one, one]


# Of a loss that depends on the other images of the batch, and of one that does not.
@pytest.mark.parametrize("method", ["stable-ct", *(pytest.param(m, marks=pytest.mark.slow) for m in ("ect", "dmd2"))])
def test_accumulation_changes_rounding_alone(method, tmp_path):
    one, parts = curves(tmp_path, method, "ddp:1,ddp:1:accumulated", 3, "fp64")
    for a, b in zip(one, parts, strict=True):
        assert a == pytest.approx(b, rel=1e-10, abs=0)


@pytest.mark.slow
def test_mean_over_the_batch_with_accumulation_on_two_processes(tmp_path):
    one, parts = curves(tmp_path, "stable-ct", "ddp:1,ddp:2:accumulated", 3, "fp64")
    for a, b in zip(one, parts, strict=True):
        assert a == pytest.approx(b, rel=1e-10, abs=0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("method", METHODS)
def test_same_losses(method, precision, tmp_path):
    one, *others = curves(tmp_path, method, "ddp:1,ddp:2,fsdp:2", STEPS, precision)
    for two in others:
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, rel=most(method, precision), abs=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_activation_checkpointing_changes_no_bit(method, tmp_path):
    runs = ("ddp:1", "ddp:2", "fsdp:2")
    found = curves(tmp_path, method, ",".join(f"{run},{run}:recomputed" for run in runs), 5, "fp32")
    for plain, again in zip(found[::2], found[1::2], strict=True):
        assert plain == again


# Of methods without further networks, with a teacher, with a critic, and with a derivative in forward mode.
@pytest.mark.slow
@pytest.mark.parametrize("method", ["edm", "pd", "dmd2", "meanflow"])
def test_compiled_blocks_change_rounding_alone(method, tmp_path):
    found = curves(tmp_path, method, "ddp:2,ddp:2:compiled,fsdp:2,fsdp:2:compiled", 5, "fp32")
    for plain, compiled in zip(found[::2], found[1::2], strict=True):
        for a, b in zip(plain, compiled, strict=True):
            assert a == pytest.approx(b, rel=1e-5, abs=0)
