"""Checkpoints of several processes: the first one looks and writes, all agree on what came of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from unistep.errors import UserError
from unistep.formats.checkpoint import filled, read_checkpoint, set_aside, whole_checkpoint

T = TypeVar("T")


def on_first(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Calls a function on the first process.

    Args:
        accelerator: the processes, all of which come here.
        function: function without arguments, whose value is pickled where there are several processes.

    Returns:
        Its value, on all processes.

    Raises:
        UserError: the one that it raised, on all processes.
    """
    if accelerator.num_processes == 1:
        return function()
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = str(error)
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


def newest_state(
    folder: Path,
    accelerator: Accelerator,
    own: Callable[[dict[str, Any]], dict[str, Any]] = lambda state: {},
    *,
    good: int | None = None,
) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is whole; damaged ones after it are put aside.

    Args:
        folder: folder of the checkpoints.
        accelerator: the processes, all of which read the same one.
        own: returns a state of this process that is as deep as the one it is given, with tensors parted as wanted.
        good: step of the one that is wanted; None is the newest.

    Returns:
        The state, on the CPU; None where there is no checkpoint.

    Raises:
        UserError: all checkpoints are damaged.
    """

    def choose() -> str | None:
        path = whole_checkpoint(folder, at_most=good)
        if path is not None and good is None:
            set_aside(folder, path)
        return None if path is None else str(path)

    chosen = on_first(accelerator, choose)
    if chosen is None:
        return None
    state = read_checkpoint(Path(chosen), checked=accelerator.is_main_process, whole=False)
    return filled(state, Path(chosen), own(state))
