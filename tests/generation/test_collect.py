import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from unistep.errors import UserError
from unistep.generation.collect import collect, collect_into, share, tiles
from unistep.generation.generate import generate
from unistep.generation.plan import ConsistencyPlan
from unistep.generation.shards import Shards
from unistep.runtime.processes import Processes

SHAPE = (1, 4, 4)
PLAN = ConsistencyPlan((80.0, 0.8))


def denoiser(x, sigma, labels=None):
    return torch.tanh(x if labels is None else x + labels[:, None, None, None])


@dataclass(frozen=True)
class Threads(Processes):
    """Threads that stand for processes; each has its own gradient mode, and the folder is what they share."""

    barrier: Any = None

    def wait(self, meanwhile=lambda: None):
        self.barrier.wait(30)


def collect_on(processes: int, folder, num_images: int, labels, model=denoiser, batch_size=7, **settings) -> Shards:
    """What `collect_into` leaves when several processes work on one folder."""
    first = Shards(folder / "images.npz", num_images, SHAPE)
    first.claim(settings)
    barrier = threading.Barrier(processes)

    def work(rank):
        own = first if rank == 0 else Shards(first.output, num_images, SHAPE)
        try:
            who = Threads(rank, processes, barrier=barrier)
            collect_into(own, model, PLAN, labels, seed=2, batch_size=batch_size, processes=who)
        except BaseException:
            barrier.abort()
            raise

    try:
        with ThreadPoolExecutor(processes) as pool:
            for done in [pool.submit(work, rank) for rank in range(processes)]:
                done.result()
    finally:
        first.release()
    return first


def images_of(unfinished: Shards) -> torch.Tensor:
    with np.load(unfinished.finish(None)) as arrays:
        return torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("num_images", [1, 16, 41])
def test_any_number_of_processes(num_images, batch_size, labelled, tmp_path):
    labels = torch.arange(num_images) % 3 if labelled else None
    (expected,) = generate(denoiser, PLAN, SHAPE, range(num_images), seed=2, labels=labels, batch_size=num_images)
    alone = collect(denoiser, PLAN, SHAPE, num_images, labels, seed=2, batch_size=batch_size)
    assert torch.equal(alone, expected)
    for processes in (1, 2, 3):
        made = collect_on(processes, tmp_path, num_images, labels, batch_size=batch_size)
        assert torch.equal(images_of(made), expected)


class Stopped(BaseException):
    """As `Interrupted`: no `Exception`."""


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_what_is_made_before_an_interruption_is_kept(processes, tmp_path):
    """Broken off after two tiles, resumed by another number of processes, which make the rest and no more."""
    labels = torch.arange(100) % 3
    calls = []

    def stopping(x, sigma, labels=None):
        calls.append(len(x))
        if len(calls) > 2 * PLAN.nfe:
            raise Stopped
        return denoiser(x, sigma, labels)

    with pytest.raises(Stopped):
        collect_on(1, tmp_path, 100, labels, stopping)
    seen = []

    def counting(x, sigma, labels=None):
        seen.append(len(x))
        return denoiser(x, sigma, labels)

    left = Shards(tmp_path / "images.npz", 100, SHAPE)
    assert left.stored() == [range(32)]
    made = collect_on(processes, tmp_path, 100, labels, counting, batch_size=64)
    assert sum(seen) == (16 * 5) * PLAN.nfe, "68 images are missing, and fill five tiles"
    (expected,) = generate(denoiser, PLAN, SHAPE, range(100), seed=2, labels=labels, batch_size=100)
    assert torch.equal(images_of(made), expected)


def test_progress(tmp_path):
    said = []
    collect(denoiser, PLAN, SHAPE, 40, None, seed=0, batch_size=8, on_done=said.append)
    assert said == [16, 32, 40]
    unfinished = Shards(tmp_path / "images.npz", 40, SHAPE)
    unfinished.claim({})
    unfinished.write(16, torch.zeros(16, *SHAPE, dtype=torch.uint8))
    unfinished.flush()
    said.clear()
    collect_into(unfinished, denoiser, PLAN, None, seed=0, batch_size=8, on_done=said.append)
    assert said[:2] == [32, 40]


def test_a_place_that_fails_ends_the_run(tmp_path, monkeypatch):
    unfinished = Shards(tmp_path / "images.npz", 40, SHAPE)
    unfinished.claim({})

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left on device; free the disk and repeat the command"):
        collect_into(unfinished, denoiser, PLAN, None, seed=0, batch_size=8)


@pytest.mark.parametrize("tile", [1, 16, 50])
def test_tiles_hold_all_images_once(tile):
    ranges = [range(3, 4), range(10, 75), range(80, 160)]
    parts = list(tiles(ranges, tile))
    assert [i for part in parts for i in part] == [i for each in ranges for i in each]
    assert all(part.start // tile == (part.stop - 1) // tile for part in parts), "each lies in one tile"


@pytest.mark.parametrize("count", [0, 1, 5, 6, 100])
@pytest.mark.parametrize("processes", [1, 2, 7])
def test_shares_are_even(count, processes):
    bounds = [share(count, Processes(rank, processes)) for rank in range(processes)]
    sizes = [end - first for first, end in bounds]
    assert [bounds[0][0], *(end for _, end in bounds)] == [*(first for first, _ in bounds), count]
    assert min(sizes) >= 0 and max(sizes) - min(sizes) <= 1
