"""A network that is on an accelerator during calls alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Offload:
    """An accelerator that the network is on during calls alone; calls in several threads share it.

    Args:
        device: the accelerator.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._calls = 0
        self._lock = threading.Lock()

    @contextmanager
    def holding(self, unet: nn.Module) -> Iterator[torch.device]:
        """Keeps the network on the accelerator until the last of all calls ends."""
        with self._lock:
            if not self._calls:
                unet.to(self.device)
            self._calls += 1
        try:
            yield self.device
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls:
                    unet.to("cpu")

    def __reduce__(self) -> tuple[Any, ...]:  # a lock has no copy
        return type(self), (self.device,)
