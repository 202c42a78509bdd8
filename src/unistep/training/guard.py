"""Steps that cannot be taken because a number is not finite, and what follows from too many of them.

A step whose loss or gradient is not finite is skipped: weights, averages and optimizer stay as they are, and the next
step has the next images. After `max_skipped` of them in a row the stage goes back to its last good checkpoint, the
newest that was written after a step that was taken, and goes on with a lower learning rate.
All of it is part of the checkpoint, so that a resumed run skips and goes back as the uninterrupted one.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from unistep.errors import UserError


class Diverged(UserError):
    """A stage that went back to a checkpoint as often as it may, and diverged again.

    Args:
        problem: the stage, and the steps that were skipped.
        remedy: way to go on.
        lr: learning rate to go on with.
    """

    def __init__(self, problem: str, remedy: str, lr: float) -> None:
        super().__init__(problem, remedy)
        self.lr = lr


@dataclass(frozen=True)
class Guard:
    """Skipped steps of a stage so far.

    Args:
        skipped: number of all of them.
        in_a_row: number of those since the last step that was taken.
        rollbacks: number of times that the stage went back.
        lr_factor: factor of the learning rate.
        lr: learning rate of the config that the factor is for: another one begins anew.
        good: step of the last good checkpoint; None where there is none.
        best_in: value of `rollbacks` when the best model was measured.
    """

    skipped: int = 0
    in_a_row: int = 0
    rollbacks: int = 0
    lr_factor: float = 1.0
    lr: float | None = None
    good: int | None = None
    best_in: int = 0

    def after(self, taken: bool) -> "Guard":
        """The counts after a step."""
        if taken:
            return self if not self.in_a_row else replace(self, in_a_row=0)
        return replace(self, skipped=self.skipped + 1, in_a_row=self.in_a_row + 1)

    def counted(self, skipped: int, in_a_row: int) -> "Guard":
        """The counts after several steps.

        Args:
            skipped: number of those that were skipped.
            in_a_row: number of skipped steps since the last one that was taken.
        """
        return replace(self, skipped=self.skipped + skipped, in_a_row=in_a_row)

    def rolled_back(self, factor: float) -> "Guard":
        """The counts after going back.

        Args:
            factor: factor of the learning rate.
        """
        return replace(self, in_a_row=0, rollbacks=self.rollbacks + 1, lr_factor=self.lr_factor * factor)

    def with_lr(self, lr: float) -> "Guard":
        """The counts with the config's learning rate: where it is another than before, it is taken as it is."""
        if self.lr == lr:
            return self
        changed = self.lr is not None
        return replace(self, lr=lr, **({"lr_factor": 1.0, "rollbacks": 0, "in_a_row": 0} if changed else {}))

    def scalars(self) -> dict[str, float]:
        """Numbers for the log; none where nothing was skipped."""
        values = {"skipped": float(self.skipped)} if self.skipped else {}
        return values | ({"rollbacks": float(self.rollbacks)} if self.rollbacks else {})

    def state_dict(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        return asdict(self)
