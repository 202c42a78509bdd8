"""Processes of this package's own that work on images for the one that starts them.

They import neither torch nor the program that is run, whatever that program does when it is imported, and get their
work by pipes. multiprocessing would import the program a second time, or copy a process that has threads.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

_CODE = "import importlib, sys; sys.path[:0] = [sys.argv[1]]; importlib.import_module(sys.argv[2]).main()"
_LEFT_TO_THE_STARTER = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


def started(module: str, beginning: dict[str, Any], files: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Starts a process.

    Args:
        module: module of this package whose `main` it runs.
        beginning: first line of its input, as JSON.
        files: open files that it shares.

    Raises:
        OSError: it cannot be started.
    """
    command = [sys.executable, "-P", "-c", _CODE, str(Path(__file__).parents[2]), module]
    process = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=tuple(files))
    assert process.stdin is not None
    process.stdin.write(json.dumps(beginning).encode() + b"\n")
    return process


def ended(process: subprocess.Popen[bytes]) -> str:
    """The end of a process that has closed its output, in words."""
    code = process.wait()
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"


def begin() -> tuple[dict[str, Any], IO[bytes], int]:
    """Takes over in a started process: signals are left to its starter, with whose end it ends, whatever it waits for.

    Returns:
        The first line of the input, the rest of it, and the file for answers; what is printed goes to stderr.
    """
    for name in _LEFT_TO_THE_STARTER:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)
    if hasattr(select, "poll"):
        threading.Thread(target=_end_with_input, daemon=True).start()
    return json.loads(sys.stdin.buffer.readline()), sys.stdin.buffer, answers


def _end_with_input() -> None:
    """Ends the process when its input is closed: one that hangs in reading a file would not come to look at it."""
    closed = select.poll()
    closed.register(0, 0)  # no event but that of the end, which is always told
    closed.poll()
    os._exit(0)
