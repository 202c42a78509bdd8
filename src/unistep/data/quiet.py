"""Pillow without its warnings: large images, damaged EXIF and palettes are answered by what is done with the image.

Pillow warns by `warnings` and by `logging`, and libtiff, which it calls, writes to the standard error by itself.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import PIL
import PIL.Image  # which loads libtiff


class _Quiet:
    """Silences Pillow while at least one thread is inside.

    The filters of `warnings`, the levels of `logging` and the handlers of libtiff belong to the process. Threads that
    each saved and restored them would restore each other's, so the first to enter changes them and the last to leave
    restores them.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._filters, self._level = warnings.catch_warnings(), logging.NOTSET
        self._handlers: list[Any] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
                self._level = logging.getLogger("PIL").level
                logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
                self._handlers = [set_handler(None) for set_handler in _libtiff()]
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    for set_handler, handler in zip(_libtiff(), self._handlers, strict=True):
                        set_handler(handler)
                    logging.getLogger("PIL").setLevel(self._level)
                    self._filters.__exit__(None, None, None)


quiet = _Quiet()
"""Context in which Pillow warns of nothing."""


@cache
def _libtiff() -> tuple[Any, ...]:
    """The functions that set libtiff's handlers of errors and warnings; none where the library is not found."""
    package = Path(PIL.__file__).parent
    bundled = [*package.parent.glob("[pP]illow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")]
    name = str(bundled[0]) if bundled else ctypes.util.find_library("tiff")
    try:
        library = ctypes.CDLL(name) if name else None
        functions = (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler) if library else ()
    except (OSError, AttributeError):
        return ()
    for function in functions:
        function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return functions
