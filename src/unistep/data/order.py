"""The images of the batch of a step, and those that are mirrored: pure functions of step and seed.

A run takes the positions 0, 1, 2, ... of an endless sequence, `global_batch_size` of them a step. Position p lies in
epoch p // N, and each epoch is a permutation of the N images: the order in which their hashes of (seed, epoch, image)
sort. Nothing is carried from step to step, so a resumed run, or one with another number of processes, has the same
images; and as the hash (`unistep.core.random.hashes`) is integer arithmetic, so does a run under another version of
numpy or PyTorch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from unistep.core.random import FLIP, ORDER, hashes


@lru_cache(maxsize=2)
def _permutation(epoch: int, dataset_size: int, seed: int) -> Tensor:
    # Two are kept, as a batch can reach from one epoch into the next.
    order = hashes((ORDER, seed, epoch), np.arange(dataset_size, dtype=np.uint64))
    return torch.from_numpy(np.argsort(order, kind="stable").astype(np.int64))


def _positions(step: int, global_batch_size: int) -> range:
    if step < 0 or global_batch_size < 1:
        raise ValueError(f"step must be 0 or more and the batch 1 or more, not {step} and {global_batch_size}")
    return range(step * global_batch_size, (step + 1) * global_batch_size)


def epoch_order(epoch: int, dataset_size: int, seed: int) -> Int64[Tensor, "N"]:
    """Returns the order of the images in an epoch.

    Args:
        epoch: number of the epoch, from 0.
        dataset_size: number of images.
        seed: seed of the run.

    Returns:
        A permutation of 0 ... dataset_size - 1.

    Raises:
        ValueError: a negative epoch, or an empty dataset.
    """
    if epoch < 0 or dataset_size < 1:
        raise ValueError(f"epoch must be 0 or more and the dataset 1 or more, not {epoch} and {dataset_size}")
    return _permutation(epoch, dataset_size, seed).clone()


def batch_indices(step: int, global_batch_size: int, dataset_size: int, seed: int) -> Int64[Tensor, "B"]:
    """Returns the images of the global batch of a step, over all processes together.

    A batch that reaches the end of an epoch continues in the next; no image is dropped.

    Args:
        step: number of the step, from 0.
        global_batch_size: number of images of the batch.
        dataset_size: number of images of the dataset.
        seed: seed of the run.

    Returns:
        Indices of the images in the dataset, in the order of the batch.

    Raises:
        ValueError: a negative step, or an empty batch or dataset.
    """
    if dataset_size < 1:
        raise ValueError("the dataset has no images")
    positions = _positions(step, global_batch_size)
    pieces: list[Tensor] = []
    start = positions.start
    while start < positions.stop:
        epoch, offset = divmod(start, dataset_size)
        count = min(dataset_size - offset, positions.stop - start)
        pieces.append(_permutation(epoch, dataset_size, seed)[offset : offset + count])
        start += count
    return torch.cat(pieces)


def batch_flips(step: int, global_batch_size: int, seed: int) -> Bool[Tensor, "B"]:
    """Draws the images of the global batch of a step that are mirrored, each with probability 1/2.

    Args:
        step: number of the step, from 0.
        global_batch_size: number of images of the batch.
        seed: seed of the run.

    Returns:
        True for each mirrored image.
    """
    positions = _positions(step, global_batch_size)
    counters = np.arange(positions.start, positions.stop, dtype=np.uint64)
    return torch.from_numpy(hashes((FLIP, seed), counters) >= np.uint64(1 << 63))
