"""Runs a function in several processes that share one training, forked from one that has imported everything."""

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch._dynamo  # which optimizers import, every process for itself: most of the time that one takes to begin

assert torch._dynamo


def several(count: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a function in `count` processes, as a launcher starts them, and waits until all have ended.

    Args:
        count: number of processes.
        function: function that is called.
        arguments: its arguments.

    Raises:
        SystemExit: one of them failed.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    children = [_forked(rank, count, port, function, arguments) for rank in range(count)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise SystemExit(f"exit codes of {count} processes: {codes}")


def _forked(rank: int, count: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        if count > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        function(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
