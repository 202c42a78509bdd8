"""Processes that do not come on: a thread that ends them, with a line that tells where they were.

In a training of several processes one that hangs makes all others wait. Each watches itself, and names its place: the
one that is not waiting for the others is the one that hangs. Where it waits for its data, the file is named too.
"""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Protocol, runtime_checkable

_PACKAGE = Path(__file__).parents[1]
_DISTRIBUTED = f"{os.sep}torch{os.sep}distributed{os.sep}"
_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 2.0
_EXIT_CODE = 1


@runtime_checkable
class Data(Protocol):
    """The data that a process reads; the watch asks from a thread of its own."""

    def waiting_for(self) -> str:
        """The file, or the images, that the process waits for now; empty where it waits for none."""
        ...

    def abandon(self) -> None:
        """Kills the processes that read for this one, without waiting for their end."""
        ...


class Watch:
    """While entered, ends the process where `at` is not called for too long, or where a time that was set is over.

    Args:
        seconds: longest time between two calls of `at`; None is any.
        rank: number of this process.
        count: number of processes.
        data: data that it reads; None is none.
    """

    def __init__(self, seconds: float | None = None, rank: int = 0, count: int = 1, data: Data | None = None) -> None:
        self._seconds, self._rank, self._count, self._data = seconds, rank, count, data
        self._step, self._since = 0, time.monotonic()
        self._end: tuple[float, str, int] | None = None
        self._left = threading.Event()
        self._main = threading.get_ident()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watch":
        self._since, self._main = time.monotonic(), threading.get_ident()
        if self._seconds is not None:
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left.set()

    def at(self, step: int) -> None:
        """Notes that the process has come to a step."""
        self._step, self._since = step, time.monotonic()

    def end_in(self, seconds: float, reason: str, code: int) -> None:
        """Sets a time after which the process ends, unless it has left before.

        Args:
            seconds: time from now on.
            reason: line about it.
            code: exit code.
        """
        self._end = time.monotonic() + seconds, reason, code
        self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        poll = min(_POLL_SECONDS, (self._seconds or _POLL_SECONDS) / 4)
        while not self._left.wait(poll):
            now = time.monotonic()
            if self._end is not None and now >= self._end[0]:
                self._leave(self._end[1], self._end[2])
            elif self._seconds is not None and now - self._since >= self._seconds:
                self._leave(f"hangs for {now - self._since:.0f} s", _EXIT_CODE)

    def _leave(self, what: str, code: int) -> None:
        where = f"process {self._rank} of {self._count}" if self._count > 1 else "the process"
        place = _place(sys._current_frames().get(self._main))
        if file := _waiting_for(self._data):
            place += f", waiting for {file}"
        print(f"unistep: error: {where} {what}, in step {self._step + 1}, {place}", file=sys.stderr, flush=True)
        if self._data is not None:
            self._data.abandon()  # one that hangs would not notice that this process has ended
        os._exit(code)


def _waiting_for(data: Data | None) -> str:
    """The file that is waited for; empty where its name is on a disk that does not answer either."""
    if data is None:
        return ""
    answer: list[str] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # the line without a file is better than none
            answer.append(data.waiting_for())

    asked = threading.Thread(target=ask, daemon=True)
    asked.start()
    asked.join(_ANSWER_SECONDS)
    return answer[0] if answer else ""


def _place(frame: FrameType | None) -> str:
    """The innermost line of this package that a thread is at, and whether it waits for other processes there."""
    waits = False
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        waits = waits or _DISTRIBUTED in str(path)
        if path.is_relative_to(_PACKAGE):
            line = f"at {path.relative_to(_PACKAGE.parent)}:{frame.f_lineno}, {frame.f_code.co_name}"
            return f"waiting for the others {line}" if waits else line
        frame = frame.f_back
    return "outside of unistep"
