"""Questions of which one process's yes is the answer of all. Run as a script it asks them in several processes."""

import os
import subprocess
import sys

import pytest
import torch.distributed as dist
from accelerate import Accelerator

from unistep.training.agreement import Agreement

PROCESSES = 3


def ask(apart: bool) -> None:
    """One process says yes to the second question, another to the third."""
    accelerator = Accelerator(cpu=True)
    if apart:  # as where the gradients' group is one of GPUs
        dist.get_backend = lambda group=None: "nccl"
    agreement, rank = Agreement(accelerator), dist.get_rank()
    assert dist.get_world_size() == PROCESSES
    assert (agreement._group is not None) == apart
    for _ in range(3):
        assert agreement.any(False, rank == 1, rank == 2, True) == [False, True, True, True]
    assert agreement.any(False) == [False]


def test_a_single_process_answers_itself():
    assert Agreement(Accelerator(cpu=True)).any(True, False) == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
def test_one_yes_is_the_answer_of_all(apart):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *(["apart"] if apart else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    from several import several

    several(PROCESSES, ask, len(sys.argv) > 1)
