"""Ctrl-C, SIGTERM and SIGUSR1: in the training loop a request to stop after the step, elsewhere the end at once.

Schedulers announce by SIGTERM or SIGUSR1 that they will take the machine away.

Python handles signals in the main thread alone. In another thread the host program keeps its handlers, and nothing here
takes effect.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""The signals that end work; there is no SIGUSR1 on Windows."""


class StopRequest:
    """While entered, the first of `SIGNALS` sets `signal`; a second Ctrl-C stops at once.

    Args:
        heard: called with the first signal; None calls nothing.
    """

    def __init__(self, heard: Callable[[signal.Signals], None] | None = None) -> None:
        self.signal: signal.Signals | None = None
        self._heard = heard
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._former = _install(self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _restore(self._former)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise Interrupted(signal.SIGINT)
        first, self.signal = self.signal is None, signal.Signals(number)
        if first and self._heard is not None:
            self._heard(self.signal)


class Interrupted(BaseException):
    """Work stopped by a signal; its notes tell what is kept. Like KeyboardInterrupt it is no `Exception`.

    Args:
        signal: signal that came; the process should exit with 128 + its number.
        step: number of steps that are done and in a checkpoint; None outside of the training loop.
    """

    def __init__(self, signal: signal.Signals, step: int | None = None) -> None:
        where = "" if step is None else f" after step {step}; the checkpoint is written"
        super().__init__(f"stopped by {signal.name}{where}")
        self.signal = signal
        self.step = step


@contextmanager
def signals_raise() -> Iterator[None]:
    """While entered, `SIGNALS` raise `Interrupted`, wherever the program is.

    Raises:
        Interrupted: a signal came.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number))

    former = _install(interrupt)
    try:
        yield
    finally:
        _restore(former)


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Sets the handler of the signals, and returns the former ones; none outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    try:
        return {number: signal.signal(number, handler) for number in SIGNALS}
    except ValueError:  # the main thread of a subinterpreter
        return {}


def _restore(former: Mapping[signal.Signals, Any]) -> None:
    for number, handler in former.items():
        # None stands for one that is not Python's, which cannot be put back.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
