"""Several processes that share one run, as torchrun and accelerate start them.

They only ever wait for each other, over gloo: whoever dies closes its connections, and who waits for it fails at once
instead of waiting for ever.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from unistep.errors import UserError

_START = timedelta(minutes=10)  # for all processes to be there
_WORK = timedelta(days=365)  # for one to wait for another's share: as long as it lives
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Args:
        rank: number of this process, from 0.
        count: number of processes.
        local_rank: number of this process on its machine, which is the number of its accelerator.
        group: process group of torch.distributed; None for a single process.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this process prints, and puts the results together."""
        return self.rank == 0

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Returns once all processes have come here; `meanwhile` is called many times a second.

        Raises:
            UserError: one of them has ended before.
        """
        if self.count == 1:
            return
        try:
            arrival = dist.barrier(self.group, async_op=True)
            # Polled, so that signals are heard: Python handles none while it waits in C++.
            while not arrival.is_completed():  # pyright: ignore[reportOptionalMemberAccess]
                meanwhile()
                time.sleep(_POLL_SECONDS)
            arrival.wait()  # pyright: ignore[reportOptionalMemberAccess]
        except RuntimeError:
            raise UserError("another process of this run has ended early; see what it printed, then repeat") from None

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes by rank, on the first; an empty list on the others. All must come here.

        Raises:
            UserError: one of them has ended before.
        """
        if self.count == 1:
            return [value]
        self.wait()
        values: list[Any] | None = [None] * self.count if self.first else None
        dist.gather_object(value, values, dst=0, group=self.group)
        return values or []

    def broadcast(self, value: Any) -> Any:
        """Returns the first process's value on all processes, all of which call this.

        Args:
            value: value of this process; that of the first one counts, and is pickled.

        Raises:
            UserError: another process has ended early.
        """
        if self.count == 1:
            return value
        self.wait()  # which hears signals, and that another process has ended
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]


def join_processes() -> Processes:
    """Joins the processes that the launcher's environment variables name; alone where there are none.

    Raises:
        UserError: the others cannot be reached, or a variable makes no sense.
    """
    environment = {name: os.environ.get(name, default) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"))}
    environment["LOCAL_RANK"] = os.environ.get("LOCAL_RANK", environment["RANK"])
    try:
        count, rank, local_rank = (int(environment[name]) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    except ValueError:
        shown = ", ".join(f"{name}={value}" for name, value in environment.items())
        raise UserError(f"the environment has {shown}, which are not all numbers; unset them or use torchrun") from None
    if count == 1:
        return Processes()
    try:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_START)
        group = dist.new_group(backend="gloo", timeout=_WORK)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"process {rank} of {count} cannot reach the others ({reason}); start all by torchrun"
        ) from None
    return Processes(rank, count, local_rank, group)
