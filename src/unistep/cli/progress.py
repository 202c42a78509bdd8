"""What a long command is doing, on terminals only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def doing_bar(active: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Yields the function that is told what is being done, how much of it is done, and how much there is.

    The bar is gone in the end; `active` False shows nothing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = active and console.is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown, transient=True) as progress:
        task = progress.add_task("", total=None)
        doing = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing:
                doing = what
                progress.reset(task, description=what, total=total or None)
            progress.update(task, completed=done, total=total or None)

        yield tell
