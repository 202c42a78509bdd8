"""Ctrl-C and SIGTERM: in the training loop a request to stop after the current step, elsewhere the end at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `signal`; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._former[number] = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread: the host program keeps its handlers
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise Interrupted(signal.SIGINT)
        self.signal = signal.Signals(number)


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
    """While entered, SIGINT and SIGTERM raise `Interrupted`, wherever the program is.

    Raises:
        Interrupted: a signal came.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number))

    former = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            former[number] = signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
