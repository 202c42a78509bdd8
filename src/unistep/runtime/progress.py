"""Progress displays on stderr. They show nothing where stderr is no terminal, and where `active` is False."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[str, int, int], None]
"""Receives a description of the work, the part of it that is done, and the whole; 0 where the whole is unknown."""


class Bar:
    """One progress bar: description, bar, count, and a status or the time that is left.

    Args:
        description: text before the bar.
        total: amount of all work; None where it is unknown.
        done: amount of work that was done before.
        status: whether a text of its own stands after the count, which `update` sets, instead of the time left.
        timed: whether the time that has passed and the time that is left stand at the end.
        keep: whether the bar stays on the screen at the end.
        active: False shows nothing.
    """

    def __init__(
        self,
        description: str = "",
        total: int | None = None,
        done: int = 0,
        *,
        status: bool = False,
        timed: bool = False,
        keep: bool = False,
        active: bool = True,
    ) -> None:
        from rich import progress as rich

        self.console = new_console()
        self.shown = active and self.console.is_terminal
        columns: list[rich.ProgressColumn] = [
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
        ]
        if status:
            columns.append(rich.TextColumn("{task.fields[status]}"))
        else:
            columns.append(rich.TimeRemainingColumn())
        if timed:
            columns += [rich.TextColumn("elapsed"), rich.TimeElapsedColumn(), rich.TextColumn("· left")]
            columns.append(rich.TimeRemainingColumn(elapsed_when_finished=False))
        self._progress = rich.Progress(
            *columns, console=self.console, disable=not self.shown, transient=not keep, refresh_per_second=4
        )
        self._task = self._progress.add_task(description, total=total, completed=done, status="")
        self._description = description

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, done: int | None = None, *, status: str | None = None) -> None:
        """Shows how much is done, a status, or both.

        Args:
            done: amount of work that is done; None leaves it.
            status: text after the count; None leaves it.
        """
        fields: dict[str, Any] = {} if status is None else {"status": status}
        self._progress.update(self._task, completed=done, **fields)

    def begin(self, description: str, total: int | None) -> None:
        """Starts another piece of work, with its own time, where the description is not that of the present one."""
        if description != self._description:
            self._description = description
            self._progress.reset(self._task, description=description, total=total)
        else:
            self._progress.update(self._task, total=total)


@contextmanager
def progress_bar(total: int, done: int = 0, *, active: bool = True) -> Iterator[Callable[[int], None]]:
    """Shows images that are made: their count, images a second, time left. The bar is gone at the end.

    Args:
        total: number of all images.
        done: number of images that were there before; they do not count for the speed.
        active: False shows nothing.

    Yields:
        The function that is called with the number of images that are done.
    """
    if not active or not may_show():
        yield _nothing
        return
    with Bar("sample", total, done, status=True) as bar:
        started = time.monotonic()

        def update(now_done: int) -> None:
            if bar.shown:
                seconds = time.monotonic() - started
                bar.update(now_done, status=pace(now_done - done, total - now_done, seconds))

        yield update


@contextmanager
def work_bar(active: bool = True) -> Iterator[Progress]:
    """Shows one piece of work after the other. The bar is gone at the end.

    Args:
        active: False shows nothing.

    Yields:
        The function that is called with the progress.
    """
    if not active or not may_show():
        yield _nothing
        return
    with Bar() as bar:

        def update(what: str, done: int, total: int) -> None:
            bar.begin(what, total or None)
            bar.update(done)

        yield update


def reading_bar(file: Any, total: int, description: str, *, active: bool = True) -> AbstractContextManager[Any]:
    """Shows how much of a file or a download is read.

    Args:
        file: file that is read.
        total: its size in bytes.
        description: text before the bar.
        active: False shows nothing.

    Returns:
        A context in which to read from the file that it gives.
    """
    console = new_console()
    if not active or not console.is_terminal:
        return nullcontext(file)
    from rich.progress import wrap_file

    return wrap_file(file, total, description=description, console=console)


def may_show() -> bool:
    """Returns whether stderr may be a terminal: where it cannot, the library that draws need not be imported."""
    named = any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))
    return named or (sys.stderr is not None and sys.stderr.isatty())


def _nothing(*_: object) -> None:
    """Takes the progress that is not shown."""


def new_console() -> "Console":
    """Returns the console that progress and messages go to, on stderr."""
    from rich.console import Console

    return Console(stderr=True)


def pace(made: int, left: int, seconds: float) -> str:
    """Returns speed and time left as text: `1234 images/s, 0:40 left` or `2.3 s/image, 1:02:03 left`.

    Args:
        made: number of images made in `seconds`; for 0 the text is empty.
        left: number of images still to be made.
        seconds: time that has passed.
    """
    if not made or seconds <= 0:
        return ""
    rate = made / seconds
    speed = f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.1f} images/s" if rate >= 1 else f"{1 / rate:.1f} s/image"
    minutes, rest = divmod(round(left / rate), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{speed}, {f'{hours}:{minutes:02d}' if hours else minutes}:{rest:02d} left"
