"""The files of several processes beside a checkpoint, written by `torch.distributed.checkpoint`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from unistep.files import sync_folder
from unistep.formats.checkpoint_parts import DIGESTS, file_digest, new_place, take_out


def write_parts(path: Path, state: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """Writes the tensors of a state that are parts, each process its own.

    All processes come here. The files are on the disk before the checkpoint that needs them is written.

    Args:
        path: the checkpoint.
        state: state whose parts are in main memory.
        group: processes, over Gloo.

    Returns:
        The state with names in the place of these tensors, and the digests of the files.

    Raises:
        OSError: a process cannot write; on all processes.
    """
    parts: dict[str, Tensor] = {}
    left, rank = take_out(state, lambda value: isinstance(value, DTensor), parts), dist.get_rank(group)
    folder: Path = _together(lambda: new_place(path) if rank == 0 else None, group)[0]
    try:
        # A string: the writer adds names to it.
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        save(parts, storage_writer=writer, process_group=group)
    except CheckpointException as error:
        failures = [failure for failure, _ in error.failures.values()]
        raise next((failure for failure in failures if isinstance(failure, OSError)), failures[0]) from None
    # Each process reads its own file, whose name begins with its number, from 1.
    own = f"shard-{rank + 1:05}-*"
    found = _together(lambda: {f"{folder.name}/{file.name}": file_digest(file) for file in folder.glob(own)}, group)
    sync_folder(folder)
    return left | {DIGESTS: {name: digest for digests in found for name, digest in sorted(digests.items())}}


def _together(function: Callable[[], Any], group: dist.ProcessGroup) -> list[Any]:
    """Returns what a function returns on each process, on all of them.

    Raises:
        OSError: the first of those that it raised.
    """
    try:
        own = function()
    except OSError as error:
        own = error
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, own, group=group)
    for value in found:
        if isinstance(value, OSError):
            raise value
    return found
