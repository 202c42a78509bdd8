"""Grids of samples in training: in which steps one is due, and its file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

FIRST = 30.0
"""Seconds of training after which a first grid is made, if the regular one is as far away."""


@dataclass(frozen=True)
class Previews:
    """The grids of a stage.

    Args:
        folder: folder of the pictures.
        steps: length of the stage.
        every: number of steps between two grids; 0 makes none.
        make: function that is called with the averaged model and a path, to which it writes a grid; None makes none.
    """

    folder: Path
    steps: int
    every: int
    make: Callable[[nn.Module, Path], None] | None = None

    @property
    def none(self) -> bool:
        """Whether no grid is made at all."""
        return self.make is None or self.every == 0

    @property
    def any_there(self) -> bool:
        """Whether there is a picture already."""
        return any(self.folder.glob("*.png"))

    def path(self, step: int) -> Path:
        """The picture after `step` steps."""
        return self.folder / f"step-{step:08d}.png"

    def due(self, step: int) -> bool:
        """Whether a grid belongs to the end of `step` steps."""
        return not self.none and step > 0 and (step % self.every == 0 or step == self.steps)

    def early(self, step: int, seconds: float, steps: int) -> bool:
        """Whether a first grid is due because people would wait for the regular one for more than a minute.

        Args:
            step: number of steps that are done.
            seconds: time since the run began, in seconds.
            steps: number of steps in that time.
        """
        if self.none:
            return False
        left = min(self.every - step % self.every, self.steps - step)
        return seconds > FIRST and left * seconds / steps > FIRST
