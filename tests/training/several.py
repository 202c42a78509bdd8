"""Runs a function in several processes that share one training, forked from one that has imported everything."""

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

# Optimizers and engines import these, every process for itself: most of the time that one takes to begin.
import tensorboard.compat.proto.summary_pb2
import torch._dynamo
import torch.utils.tensorboard

import unistep.training.replicated
import unistep.training.sharded

assert torch._dynamo and torch.utils.tensorboard and tensorboard and unistep.training


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
    # All leave together, without a word to each other: a Gloo group that is taken down may wait for ever for a process
    # that has gone before, and one that has not come yet fails.
    done, end = os.pipe(), os.pipe()
    children = [_forked(rank, count, port, function, arguments, done, end) for rank in range(count)]
    os.close(done[1])
    left = count
    while left and os.read(done[0], 1):
        left -= 1
    os.close(end[1])
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.close(done[0]), os.close(end[0])
    if any(codes):
        raise SystemExit(f"exit codes of {count} processes: {codes}")


def _forked(
    rank: int,
    count: int,
    port: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    done: tuple[int, int],
    end: tuple[int, int],
) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        os.close(end[1])
        if count > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        function(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os.write(done[1], b".")
        if code == 0:
            os.read(end[0], 1)
        os._exit(code)
