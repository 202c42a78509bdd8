"""Memory of activations, kept by the process from one operation to the next.

By default the C library gives blocks of more than 32 MiB back to the system as soon as they are free, and gets them
again as pages that are filled with zeros one by one. A feature map of 256 x 256 pixels and 256 channels in bf16 is just
larger: its pages took a sixth of the time of an evaluation.
"""

import ctypes
import functools

from torch import nn

from unistep.runtime.precision import SMALL, size_of

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
_BYTES = 1 << 30


def keep_for(network: nn.Module) -> None:
    """Calls `keep_heap` where a network is large enough and computes on the CPU.

    Args:
        network: network that is about to make images.
    """
    parameter = next(network.parameters(), None)
    if parameter is not None and parameter.device.type == "cpu" and size_of(network) >= SMALL:
        keep_heap()


def keep_for_bytes(count: int) -> None:
    """Calls `keep_heap` where another runtime computes a network that is large enough.

    Args:
        count: size of its files; a number takes a byte or more.
    """
    if count >= SMALL:
        keep_heap()


@functools.cache
def keep_heap() -> bool:
    """Has the C library keep up to a gibibyte of freed memory in this process from now on; returns whether it does.

    That is glibc alone; others are left as they are.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - of glibc alone: others have other numbers for their options
        return bool(library.mallopt(_MMAP_THRESHOLD, _BYTES) and library.mallopt(_TRIM_THRESHOLD, _BYTES))
    except (AttributeError, OSError, TypeError):  # no such function, or no such library
        return False
