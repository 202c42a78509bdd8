"""Runs command lines one after another, each in a process of its own that is forked from this one.

Everything is imported here once. A line of JSON on stdin gives a command; a line of JSON on stdout tells its end.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any

_SECONDS = 40  # by the clock, on a machine that may be busy; after these a command hangs
_ROOM = 4 << 30  # bytes of addresses beyond those of now: what is worse would harm the machine


def main() -> None:
    imported()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(outcome(json.loads(line))), file=answers, flush=True)


def imported() -> None:
    import warnings

    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        import huggingface_hub.hf_api  # noqa: F401
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
        import onnxruntime  # noqa: F401
        import rich.console  # noqa: F401
        import rich.table  # noqa: F401

        import unistep.cli.convert
        import unistep.cli.data
        import unistep.cli.demo
        import unistep.cli.edit
        import unistep.cli.evaluate
        import unistep.cli.inspect
        import unistep.cli.recipes
        import unistep.cli.sample
        import unistep.cli.search
        import unistep.cli.train
        import unistep.data.inspect
        import unistep.formats.hub.model
        import unistep.formats.open
        import unistep.metrics.evaluation
        import unistep.pipelines.consistency_model
        import unistep.workflows.image_sources
        import unistep.workflows.runs.loop  # noqa: F401
    # The limits for people are too long for a test.
    unistep.formats.hub.transfer.SILENCE = 2.0
    unistep.formats.hub.download.TIMEOUT = 1.5
    unistep.formats.hub.download._ATTEMPTS = 1


def outcome(job: dict[str, Any]) -> dict[str, Any]:
    """The end of a command: its exit code (None where it hangs), CPU seconds, peak memory in bytes, and texts."""
    started = time.monotonic()
    held = os.pipe()  # stdin of the command, which brings nothing and does not end
    pid = os.fork()
    if pid == 0:
        run(job, held)
    os.close(held[0])
    code: int | None = None
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() - started > _SECONDS:
            os.kill(pid, signal.SIGKILL)
            _, _, usage = os.wait4(pid, 0)
            break
        time.sleep(0.002)
    os.close(held[1])
    texts = {}
    for name in ("out", "err"):
        with open(job[name], "rb") as file:
            texts[name] = file.read(1 << 20).decode("utf-8", "backslashreplace")
    seconds = usage.ru_utime + usage.ru_stime
    return {"code": code, "seconds": seconds, "peak": usage.ru_maxrss << 10, **texts}


def run(job: dict[str, Any], stdin: tuple[int, int]) -> None:
    code = 70
    with contextlib.suppress(BaseException):
        os.dup2(stdin[0], 0)
        for place in stdin:
            os.close(place)
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
            os.close(file)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", errors="backslashreplace")
        os.chdir(job["folder"])
        os.environ.update(job["environment"])
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + _ROOM, now + _ROOM))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        from unistep.cli.main import main as unistep

        try:
            unistep(job["words"])
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except BaseException:
            traceback.print_exc()
            code = 1
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
