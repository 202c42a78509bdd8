"""Work on many files in threads: Pillow and the file system run outside the interpreter lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from unistep.runtime.progress import Bar

S = TypeVar("S")
T = TypeVar("T")

PROGRESS_ABOVE = 2000
"""Number of items from which a progress bar is shown on a terminal."""

_TASK_ITEMS = 8  # small images take little longer than handing them to a thread does
_MOST_BYTES = 512 << 20


def cpu_count() -> int:
    """Number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def ordered_stream(function: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """Computes the function of each item in threads and yields the results in order, few of them ahead.

    Args:
        function: function of an item.
        items: items, taken as they are needed.
        workers: number of threads.
    """
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[T]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def ordered_map(function: Callable[[int], T], count: int, description: str, item_bytes: int = 0) -> Iterator[T]:
    """Computes function(0), function(1), ... function(count - 1) in threads and yields the results in order.

    Only a few results are computed ahead of the one that is taken, so memory stays bounded. The first exception
    reaches the caller and ends the work.

    Args:
        function: function of an index.
        count: number of results.
        description: text of the progress bar.
        item_bytes: size of a result; of large ones few are computed at once.
    """
    workers = max(1, min(cpu_count(), _MOST_BYTES // max(1, 3 * item_bytes)))
    task_items = _TASK_ITEMS if item_bytes * _TASK_ITEMS * 3 * workers <= _MOST_BYTES else 1
    done = 0

    def work(start: int) -> list[T]:
        return [function(index) for index in range(start, min(start + task_items, count))]

    with Bar(description, count, active=count > PROGRESS_ABOVE) as bar, ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[list[T]]] = deque()
        try:
            for start in range(0, count, task_items):
                pending.append(pool.submit(work, start))
                if len(pending) > 2 * workers:
                    results = pending.popleft().result()
                    done += len(results)
                    bar.update(done)
                    yield from results
            while pending:
                results = pending.popleft().result()
                done += len(results)
                bar.update(done)
                yield from results
        finally:
            for future in pending:
                future.cancel()
