"""The number of threads of this process's arithmetic on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def arithmetic_threads(count: int | None) -> Iterator[None]:
    """While entered, one operation on the CPU takes at most so many threads.

    Args:
        count: number of threads; None leaves it.
    """
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)
