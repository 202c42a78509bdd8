"""Evaluations in training: when they are due, and which model was the best.

What is measured comes from outside: the trainer knows a function that gives a number and its interval. The best step
and its number are part of the checkpoint, so that a resumed run keeps the model that the uninterrupted one keeps.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Score(Protocol):
    """A measured number, lower is better; as text it is the number and half its 95% interval."""

    @property
    def value(self) -> float:
        """The number."""
        ...

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95%."""
        ...


@dataclass(frozen=True)
class Best:
    """The lowest number so far, and the step that it was measured after; `text` is the number with its error."""

    step: int
    value: float
    text: str

    def state_dict(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a stage while it trains.

    Args:
        name: name of the metric, as KD-MNIST.
        every: number of steps between evaluations; the last step is followed by one too.
        measure: function of the averaged model, called on all processes, which get the same number.
        keep: function of the averaged model, the best score and the seconds of training, called on the first process.
    """

    name: str
    every: int
    measure: Callable[[nn.Module], Score]
    keep: Callable[[nn.Module, Best, float], None]

    def due(self, step: int, total_steps: int) -> bool:
        """Whether one follows `step` steps."""
        return step % self.every == 0 or step == total_steps


def better(score: Score, step: int, best: Best | None) -> Best | None:
    """The best with this score; a number that is none, or no lower one, changes nothing."""
    if math.isfinite(score.value) and (best is None or score.value < best.value):
        return Best(step, score.value, str(score))
    return best
