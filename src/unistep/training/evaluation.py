"""Evaluations in training: when they are due, and which model was the best.

What is measured comes from outside: the trainer knows a function that gives a number and its interval. The best step
and its number are part of the checkpoint, so that a resumed run keeps the model that the uninterrupted one keeps.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn

Metric = Literal["kd", "fd"]
MIN_IMAGES = 20  # the Frechet distance takes its error from ten groups


@dataclass(frozen=True)
class EvaluationConfig:
    """How the averaged model is measured in training.

    Args:
        num_images: made of it, from the same noise each time.
        metric: "kd" kernel distance, unbiased; "fd" Frechet distance, biased where there are few images.
        features: network whose features are compared; "auto" takes mnist for grey images of 28 or 32 pixels, inception
            for all others.
        features_path: their weights, where those that are downloaded cannot be had.
        reference_images: of the data, drawn once; all where there are fewer.
        steps: of the sampler; null is what the model takes by itself, as 1 of a consistency model.
        seed: of the images that are made, and of which ones they are compared with.
    """

    num_images: int = 1000
    metric: Metric = "kd"
    features: str = "auto"
    features_path: str | None = None
    reference_images: int = 10_000
    steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_images", "reference_images"):
            if getattr(self, name) < MIN_IMAGES:
                raise ValueError(f"evaluation.{name} {getattr(self, name)} must be at least {MIN_IMAGES}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"evaluation.steps {self.steps} must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"evaluation.seed {self.seed} must lie between 0 and {2**63 - 1}")


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
    """What the trainer needs in order to evaluate.

    Args:
        name: of the number, as KD-MNIST.
        every: steps between evaluations; the last step is followed by one too.
        measure: called with the averaged model, on all processes; all get the same number.
        keep: called on the first process with the averaged model, what is the best, and the seconds of training.
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
