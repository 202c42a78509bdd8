"""Averages numbers over four processes in two orders, and leaves them in FOLDER: mean_in_order.py FOLDER"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from several import several

from unistep.training.replicated import mean_in_order

PROCESSES, NUMBERS = 4, 1001


def numbers(rank: int) -> torch.Tensor:
    return torch.randn(NUMBERS, generator=torch.Generator().manual_seed(rank))


def average(folder: Path) -> None:
    dist.init_process_group("gloo")
    own, order = numbers(dist.get_rank()), torch.randperm(NUMBERS, generator=torch.Generator().manual_seed(9))
    found = {"plain": mean_in_order(own.clone()), "moved": mean_in_order(own[order])[order.argsort()]}
    torch.save(found, folder / f"{dist.get_rank()}.pt")


if __name__ == "__main__":
    several(PROCESSES, average, Path(sys.argv[1]))
