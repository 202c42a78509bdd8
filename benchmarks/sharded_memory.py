"""Memory that weights, averages and moments take in each process of a training in parts.

    torchrun --standalone --nproc_per_node=2 benchmarks/sharded_memory.py [--width 0.5] [--measured]

The network is that of LSUN-256 (256 x 256 pixels), whose channels are multiplied by `--width`. Nothing is evaluated: a
step with a gradient of zeros makes the moments. By default tensors have shapes alone and their bytes are added up; with
`--measured` they are made, and the growth of the process's resident memory stands beside.
"""

import argparse
import os
from dataclasses import replace

import psutil
import torch
from accelerate import Accelerator

from unistep.config import find_recipe, read_values, run_config
from unistep.core.parameterization import EDMScaling, Preconditioned
from unistep.networks.table import build_network
from unistep.objectives.methods import METHODS
from unistep.objectives.protocol import ObjectiveInputs
from unistep.training.ema import EMA, own_part
from unistep.training.engines import build_engine

GIB = 1 << 30


def main() -> None:
    """Prints a line of a table, on the first process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--measured", action="store_true")
    given = parser.parse_args()
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    config = run_config(read_values(find_recipe("lsun256-edm"))).network
    channels = tuple(int(c * given.width) for c in config.block_out_channels)
    config = replace(config, sample_size=256, in_channels=3, out_channels=3, block_out_channels=channels)
    process = psutil.Process()
    before = process.memory_info().rss
    with torch.device("cpu" if given.measured else "meta"):
        student = Preconditioned(build_network(config), EDMScaling())
    count = sum(p.numel() for p in student.parameters())
    objective = METHODS["ect"].config().build(ObjectiveInputs(student, 100))
    engine = build_engine("fsdp", accelerator)
    if engine.sharded:
        student = engine.place(student, objective)
    ema = EMA(student, [0.999])
    optimizer = torch.optim.AdamW(student.parameters())
    for p in student.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    moments = [v for values in optimizer.state.values() for v in values.values() if v.ndim]
    averages = [v for average in ema.averages.values() for v in average.values()]
    kinds = {"weights": [*student.parameters()], "average": averages, "moments": moments}
    sizes = {name: sum(own_part(v).nbytes for v in found) / GIB for name, found in kinds.items()}
    if accelerator.is_main_process:
        shown = ", ".join(f"{name} {size:.3f}" for name, size in sizes.items())
        resident = f", resident {(process.memory_info().rss - before) / GIB:.3f}" if given.measured else ""
        total = sum(sizes.values())
        print(f"{count:,} parameters, {accelerator.num_processes} processes, GiB: {shown}, sum {total:.3f}{resident}")
    os._exit(0)  # without the end of the group, which may wait for a process that has gone


if __name__ == "__main__":
    main()
