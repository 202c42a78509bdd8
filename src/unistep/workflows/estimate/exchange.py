"""Rates of several Gloo processes of this machine: what they exchange, and how they slow each other down.

    python -m unistep.workflows.estimate.exchange FILE BYTES RANK PROCESSES

is one of them; they meet at the file. The first prints its findings as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from unistep.errors import UserError

_TURNS = 5
_WORK_SECONDS = 1.0
_LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Exchange:
    """Measured rates of some processes.

    Args:
        seconds: seconds of an exchange of the gradients between all.
        slowdown: time of work when all work, over that of one alone.
        process: bytes of a process before it holds a network.
    """

    seconds: float
    slowdown: float
    process: int


def measure_exchange(processes: int, num_bytes: int) -> Exchange:
    """Measures processes that are started for it.

    Args:
        processes: number of processes.
        num_bytes: bytes of the gradients.

    Raises:
        UserError: they cannot work together.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __name__, str(Path(folder) / "meeting"), str(num_bytes)]
        started = [
            subprocess.Popen([*command, str(rank), str(processes)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for rank in range(processes)
        ]
        try:
            said = [process.communicate(timeout=_LIMIT_SECONDS) for process in started]
        except subprocess.TimeoutExpired:
            said = []
        finally:
            for process in started:
                process.kill()
    if not said or started[0].returncode:
        raise UserError(
            f"{processes} processes cannot exchange anything on this machine", "plan for a row of the table"
        )
    return Exchange(**json.loads(said[0][0]))


def main(meeting: str, num_bytes: int, rank: int, processes: int) -> None:
    """Measures as one of the processes."""
    import torch
    import torch.utils.tensorboard  # noqa: F401  what a run has imported
    from torch import distributed

    import unistep.workflows.runs.loop  # noqa: F401
    from unistep.training.replicated import mean_in_order

    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    layer = torch.nn.Sequential(*(torch.nn.Conv2d(64, 64, 3, padding=1) for _ in range(4)))
    x = torch.randn(8, 64, 32, 32)

    def work() -> None:
        layer(x).square().mean().backward()

    work()
    torch.optim.AdamW(layer.parameters()).step()
    work()
    process = psutil.Process(os.getpid()).memory_info().rss  # with the libraries that the first work and step load
    count = max(3, round(_WORK_SECONDS / _seconds(work, 2)))
    alone = 0.0
    for turn in range(processes):
        distributed.barrier()
        if turn == rank:
            alone = _seconds(work, count)
    distributed.barrier()
    found = torch.tensor([alone, _seconds(work, count)])
    distributed.all_reduce(found)
    gradients = torch.ones(max(1, num_bytes // 4))
    mean_in_order(gradients)
    distributed.barrier()
    seconds = _seconds(lambda: mean_in_order(gradients), _TURNS)
    distributed.barrier()
    distributed.destroy_process_group()
    if rank == 0:
        slowdown = max(1.0, float(found[1] / found[0]))
        print(json.dumps({"seconds": seconds if processes > 1 else 0.0, "slowdown": slowdown, "process": process}))


def _seconds(work: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
