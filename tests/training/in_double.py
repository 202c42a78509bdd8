"""An objective whose images and random numbers are in fp64: beside networks in fp64, nothing of a step is rounded more.

Noise keeps the values that it has in fp32.
"""

from typing import Any

from torch import Tensor

from unistep.core.random import ImageRandom


class InDouble:
    """An objective in fp64.

    Args:
        own: objective whose networks are in fp64.
    """

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def among(self, x: Tensor, class_labels: Tensor | None) -> None:
        self._own.among(x.double(), class_labels)

    def loss(self, student: Any, x: Tensor, labels: Tensor | None, step: int, random: Any, seed: int | None) -> Tensor:
        return self._own.loss(student, x.double(), labels, step, _DoubleRandom(random), seed)


class _DoubleRandom:
    def __init__(self, own: ImageRandom) -> None:
        self._own, self.device = own, own.device

    def __len__(self) -> int:
        return len(self._own)

    def randn(self, *shape: int) -> Tensor:
        return self._own.randn(*shape).double()

    def rand(self, *shape: int) -> Tensor:
        return self._own.rand(*shape).double()

    def randint(self, high: int) -> Tensor:
        return self._own.randint(high)
