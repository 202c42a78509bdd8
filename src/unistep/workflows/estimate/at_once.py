"""Steps of several processes of this machine at once: their times by part, and the largest memory of a process.

    python -m unistep.workflows.estimate.at_once FOLDER RANK PROCESSES

is one of them. They find the config in the folder, meet there, and the first leaves its findings. They take the
trainer's own steps, with random weights on random images:

    passes      of the objective, by itself, while all processes take theirs and none waits for another
    exchange    what a step takes beyond that before its update: exchange, and waiting for the slowest process
    update      optimizer and averages

So processes that share processors, caches and memory slow each other down as in a run.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unistep.config import RunConfig
from unistep.config.resolve import run_config, to_values
from unistep.errors import UserError

if TYPE_CHECKING:
    from unistep.workflows.estimate.measure import Step

_STEPS, _LEAST_STEPS = 8, 3
_SECONDS = 60.0  # of the steps of all stages, about
_LIMIT_SECONDS = 600.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class AtOnce:
    """Measured times of a stage, medians of `steps` steps, and memory.

    Args:
        steps: number of steps; 0 where they would take too long.
        passes: seconds of forward and backward pass of a micro-batch; with the exchange where networks are in parts.
        exchange: seconds of exchange and waiting in a step.
        update: seconds of the update of a step.
        peak: bytes of the process that has taken most, until the end of this stage.
        threads: number of threads of a process's arithmetic.
    """

    steps: int
    passes: float
    exchange: float
    update: float
    peak: int
    threads: int


def measure_at_once(config: RunConfig, processes: int) -> list[AtOnce]:
    """Measures the stages of a run on processes that are started as torchrun starts them.

    Args:
        config: run.
        processes: number of processes.

    Raises:
        UserError: they cannot work together, or take too long.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(to_values(config)))
        started: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(processes):
                command = [sys.executable, "-m", __name__, name, str(rank), str(processes)]
                started.append(_started(command, _environment(rank, processes)))
            _wait(started)
        finally:
            for process in started:
                process.kill()
                process.wait()
        if any(process.returncode for process in started):
            raise UserError(
                f"{processes} processes cannot take steps of this recipe on this machine", "plan for a row of the table"
            )
        return [AtOnce(**one) for one in json.loads((folder / "found.json").read_text())]


def _started(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait(started: "list[subprocess.Popen[bytes]]") -> None:
    """Returns when all have ended, or one has failed, for which the others would wait, or the time is over."""
    end = time.monotonic() + _LIMIT_SECONDS
    while any(process.poll() is None for process in started):
        if any(process.returncode for process in started) or time.monotonic() > end:
            return
        time.sleep(_POLL_SECONDS)


def _environment(rank: int, processes: int) -> dict[str, str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    if processes == 1:
        return environment
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {"OMP_NUM_THREADS": "1"} | environment | {name: str(number) for name, number in given.items()}


def main(name: str, rank: int, processes: int) -> None:
    """Measures as one of the processes."""
    import torch.utils.tensorboard  # noqa: F401  what a run has imported
    from torch import distributed

    import unistep.workflows.runs.loop  # noqa: F401

    folder = Path(name)
    config = run_config(json.loads((folder / "config.json").read_text()))
    if processes > 1:
        meeting = f"file://{folder / 'meeting'}"
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    found = _measured(config, processes)
    if processes > 1:
        distributed.barrier()
        distributed.destroy_process_group()
    if rank == 0:
        (folder / "found.json").write_text(json.dumps([asdict(one) for one in found]))


def _measured(config: RunConfig, processes: int) -> list[AtOnce]:
    import torch

    from unistep.training.engines import build_engine
    from unistep.workflows.estimate.count import count
    from unistep.workflows.estimate.design import build_parts, designed
    from unistep.workflows.estimate.measure import evaluation_seconds, passes_alone, random_images, whole_step
    from unistep.workflows.runs.loop import build_accelerator

    accelerator = build_accelerator(config.precision)
    images, designs, _ = designed(config)
    dataset, seconds = random_images(images.shape, images.classes), _SECONDS / len(designs)
    found: list[AtOnce] = []
    for design in designs:
        stage, engine = design.stage, build_engine(config.engine, accelerator)
        batch = stage.batch_size // (processes * stage.accumulation)
        flops = count(config, design, images, accelerator)[1]
        parts = build_parts(config, design, engine=engine)
        evaluation = min(evaluation_seconds(parts.student, dataset, accelerator) for _ in range(2))
        expected = _most(evaluation) * batch * flops.total / flops.evaluation
        if expected * (_LEAST_STEPS + 2) > 2 * seconds:  # batches are faster than single images
            found.append(AtOnce(0, expected, 0.0, 0.0, 0, torch.get_num_threads()))
            continue
        own: list[float] = []
        if not engine.sharded:  # else nothing can be computed alone
            step = passes_alone(parts, stage, dataset, accelerator)
            own = [seconds for seconds, _ in _repeated(step, batch, seconds / 3)]
        step = whole_step(parts, stage, dataset, accelerator, engine)
        together = _repeated(step, batch, seconds / 2)
        before, update = map(statistics.median, zip(*together, strict=True))
        passes = _mean(statistics.median(own)) if own else before
        times = passes, max(0.0, before - passes), update
        found.append(AtOnce(len(together), *times, round(_most(_peak())), torch.get_num_threads()))
    return found


def _repeated(step: "Step", batch: int, seconds: float) -> list[tuple[float, float]]:
    """The times of so many steps as fit; the first two load libraries, and place the buckets of the exchange."""
    step(batch, 0)
    _most(0.0)  # all begin together
    second = sum(step(batch, 1))
    number = max(_LEAST_STEPS, min(_STEPS, int(seconds / max(_most(second), 1e-9))))
    return [step(batch, 2 + n) for n in range(number)]


def _peak() -> int:
    """The most main memory that this process has had."""
    try:
        line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    except (OSError, StopIteration):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10


def _most(value: float) -> float:
    """The largest of the values of all processes."""
    return _of_all(value, "MAX")


def _mean(value: float) -> float:
    from torch import distributed

    return _of_all(value, "SUM") / (distributed.get_world_size() if distributed.is_initialized() else 1)


def _of_all(value: float, operation: str) -> float:
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        return value
    number = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(number, getattr(distributed.ReduceOp, operation))
    return float(number)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
