"""Weights in a mapped file, whose pages are given back while a runtime converts them.

A runtime that compiles a network makes a copy of the weights in its own layout, and reads nothing but that later. The
pages of the file would stay in the process all the same, and its peak would be twice the weights.
"""

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_SECONDS = 0.02


def trim_heap() -> None:
    """Gives memory that was freed back to the system, where the C library is one that keeps it (glibc)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # no such function, or no such library
        return
    trim(0)


class MappedFile:
    """A file that is mapped into memory.

    Args:
        path: the file; not empty.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is empty.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            # Runtimes take arrays that could be written to; nothing is, and the file would stay as it is.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def array(self) -> np.ndarray:
        """Returns the bytes of the file, which are read when they are used; they must not be changed."""
        return np.frombuffer(self._map, dtype=np.uint8)

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """Keeps the pages out of the memory of the process while the body runs.

        A page that is used again comes from the system's cache of files, as the first time.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            yield
            return
        done = threading.Event()

        def repeat() -> None:
            while not done.wait(_SECONDS):
                self._map.madvise(mmap.MADV_DONTNEED)

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._map.madvise(mmap.MADV_DONTNEED)
