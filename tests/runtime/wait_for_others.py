"""One of the three processes that `test_processes.py` starts: `killed` is the number of the one that dies."""

import os
import signal
import sys
from pathlib import Path

from unistep.errors import UserError
from unistep.runtime.processes import join_processes

rank: int
port: int
killed: int | None
pipe: str
said: str

os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "3", "RANK": str(rank)}
processes = join_processes()
processes.wait()
if rank == killed:
    os.kill(os.getpid(), signal.SIGKILL)
if rank == 2 and killed is None:
    Path(pipe).read_bytes()  # comes last: when the first has waited for a while
calls = []


def meanwhile() -> None:
    calls.append(1)
    if rank == 0 and len(calls) == 3 and killed is None:
        Path(pipe).write_bytes(b"come")


try:
    processes.wait(meanwhile)
except UserError as error:
    Path(said).write_text(str(error))
    sys.exit(3)
Path(said).write_text(f"process {processes.rank} of {processes.count} saw all; waited {len(calls) >= 3}")
