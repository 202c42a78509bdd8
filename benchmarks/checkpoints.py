"""Seconds that training waits for a checkpoint, and that writing it takes.

    python benchmarks/checkpoints.py
    torchrun --standalone --nproc_per_node=2 benchmarks/checkpoints.py [--width 0.5] [--folder PLACE]

The network is that of LSUN-256, whose channels are multiplied by `--width`; the state is its weights, one average and
the moments of Adam. Several processes have it in parts. Nothing is evaluated: training is asleep. Beside it stands the
time of a state that is put together on the first process and written while all wait.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator

from unistep.config import find_recipe, read_values, run_config
from unistep.core.parameterization import EDMScaling, Preconditioned
from unistep.formats.checkpoint import save_checkpoint
from unistep.networks.table import build_network
from unistep.objectives.methods import METHODS
from unistep.objectives.protocol import ObjectiveInputs
from unistep.training.ema import EMA, own_part
from unistep.training.engines import build_engine
from unistep.training.restore import on_first
from unistep.training.saving import CheckpointWriter

GIB = 1 << 30


def main() -> None:
    """Prints a line, on the first process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--turns", type=int, default=3, help="checkpoints; the least times are shown")
    parser.add_argument("--folder", type=Path, help="folder on the disk that is timed")
    given = parser.parse_args()
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    config = run_config(read_values(find_recipe("lsun256-edm"))).network
    channels = tuple(int(c * given.width) for c in config.block_out_channels)
    config = replace(config, sample_size=256, in_channels=3, out_channels=3, block_out_channels=channels)
    student = Preconditioned(build_network(config), EDMScaling())
    objective = METHODS["ect"].config().build(ObjectiveInputs(student, 100))
    engine = build_engine("fsdp", accelerator)
    student = engine.place(student, objective)
    ema = EMA(student, [0.999])
    optimizer = torch.optim.AdamW(student.parameters())
    for p in student.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    state = {"student": student.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
    moments = [v for values in optimizer.state.values() for v in values.values()]
    averages = [v for average in ema.averages.values() for v in average.values()]
    size = sum(own_part(v).nbytes for v in [*student.parameters(), *averages, *moments]) / GIB
    waits, writes, together = [], [], []
    made = tempfile.mkdtemp(dir=given.folder)
    folder = Path(on_first(accelerator, lambda: made))
    with CheckpointWriter(folder, 1, accelerator, engine) as writer:
        for turn in range(1, given.turns + 1):
            _meet(accelerator)
            start = time.monotonic()
            writer.begin(turn, engine.snapshot(state), None, lambda: None)
            waits.append(time.monotonic() - start)
            writer.wait()
            writes.append(time.monotonic() - start)
    for turn in range(given.turns + 1, 2 * given.turns + 1):
        _meet(accelerator)
        start = time.monotonic()
        whole = engine.whole(state)
        on_first(accelerator, lambda: str(save_checkpoint(folder, turn, whole, 1)))  # noqa: B023
        together.append(time.monotonic() - start)
    if accelerator.is_main_process:
        print(
            f"{accelerator.num_processes} processes, {size:.2f} GiB each: training waits {min(waits):.2f} s, "
            f"written in {min(writes):.2f} s; put together and written at once {min(together):.2f} s",
            flush=True,
        )
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    _meet(accelerator)
    Path(made).rmdir()
    os._exit(0)  # without the end of the group, which may wait for a process that has gone


def _meet(accelerator: Accelerator) -> None:
    if accelerator.num_processes > 1:
        dist.barrier()


if __name__ == "__main__":
    main()
