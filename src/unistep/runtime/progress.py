"""A progress bar on stderr, on terminals only: images done, images a second, time left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


@contextmanager
def progress_bar(total: int, done: int = 0, *, active: bool = True) -> Iterator[Callable[[int], None]]:
    """Yields the function that is told how many of `total` images are done; the bar is gone in the end.

    Args:
        total: images in all.
        done: images that were there before; they do not count for the speed.
        active: False shows nothing.
    """
    console = Console(stderr=True)
    columns = (TextColumn("sample"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    shown = active and console.is_terminal
    with Progress(*columns, console=console, disable=not shown, transient=True, refresh_per_second=4) as progress:
        task = progress.add_task("sample", total=total, completed=done, pace="")
        started = time.monotonic()

        def update(now_done: int) -> None:
            if shown:
                progress.update(
                    task, completed=now_done, pace=pace(now_done - done, total - now_done, time.monotonic() - started)
                )

        yield update


def pace(made: int, left: int, seconds: float) -> str:
    """`1234 images/s, 0:40 left` or `2.3 s/image, 1:02:03 left`; empty while nothing is made."""
    if not made or seconds <= 0:
        return ""
    rate = made / seconds
    speed = f"{rate:.0f} images/s" if rate >= 10 else f"{rate:.1f} images/s" if rate >= 1 else f"{1 / rate:.1f} s/image"
    minutes, rest = divmod(round(left / rate), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{speed}, {f'{hours}:{minutes:02d}' if hours else minutes}:{rest:02d} left"
