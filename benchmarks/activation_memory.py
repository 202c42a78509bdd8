"""Memory and time that forward and backward pass take with and without activation checkpointing.

    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/activation_memory.py [--recipe cifar10-edm] [--batch 8]
        [--checkpointing]

The network is that of a recipe, with random weights, on a CPU in fp32. One call measures one of the two: how far the
peak of the process's resident memory rises above what it is with weights and gradients. The variable makes glibc give
back what is freed, which takes time; else the pieces that are too small for what follows are counted.
"""

import argparse
import resource
import time
from pathlib import Path

import psutil
import torch

from unistep.config import find_recipe, read_values, run_config
from unistep.networks.block import recompute_blocks
from unistep.networks.table import build_network

_STEPS = 2


def main() -> None:
    """Prints a line of a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar10-edm")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--checkpointing", action="store_true")
    given = parser.parse_args()
    config = run_config(read_values(find_recipe(given.recipe))).network
    network = build_network(config).train()
    if given.checkpointing:
        recompute_blocks(network)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(given.batch, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    labels = torch.arange(given.batch) % config.num_class_embeds if config.num_class_embeds else None
    c_noise = torch.linspace(-1, 1, given.batch)
    before, seconds = psutil.Process().memory_info().rss, 0.0
    for _ in range(_STEPS):
        start = time.perf_counter()
        network(x, c_noise, labels, generator=generator).square().mean().backward()
        seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(p.numel() for p in network.parameters())
    print(
        f"{Path(given.recipe).stem}: {count:,} parameters, {given.batch} images, checkpointing {given.checkpointing}: "
        f"{(peak - before) / (1 << 20):,.0f} MiB, {seconds:.2f} s a step"
    )


if __name__ == "__main__":
    main()
