"""Skipped steps, counted on the device: the host asks for them now and then, and no step waits for it.

The optimizer leaves weights and moments as they are where `found_inf` is 1, by a comparison on the device; so do the
averages, whose rate becomes 0. Three numbers count what happened since the host last asked.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unistep.training.guard import Guard


@dataclass(frozen=True)
class Asked:
    """Steps since the host last asked.

    Args:
        guard: counts of skipped steps.
        taken: number of steps that were taken.
        loss: sum of their losses.
    """

    guard: Guard
    taken: int
    loss: Tensor


class DeviceSkips:
    """Counts of skipped steps on a device.

    Args:
        device: device that trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._skipped, self._in_a_row, self._taken = torch.zeros(3, dtype=torch.int64, device=device).unbind()
        self._loss = torch.zeros((), device=device)
        self.pending = False

    def begin(self, guard: Guard) -> None:
        """Starts from the counts of `guard`, with nothing pending."""
        self._in_a_row.fill_(guard.in_a_row)
        for count in (self._skipped, self._taken, self._loss):
            count.zero_()
        self.pending = False

    def count(self, loss: Tensor, finite: Tensor) -> None:
        """Counts a step.

        Args:
            loss: its loss.
            finite: whether it was taken, as a tensor of no axes.
        """
        self._skipped += ~finite
        self._in_a_row.copy_(torch.where(finite, 0, self._in_a_row + 1))
        self._taken += finite
        self._loss += torch.where(finite, loss, 0)
        self.pending = True

    def ask(self, guard: Guard) -> Asked:
        """Returns what happened since `begin`; the host waits for the device.

        Args:
            guard: counts before.
        """
        skipped, in_a_row, taken = torch.stack([self._skipped, self._in_a_row, self._taken]).tolist()
        self.pending = False
        return Asked(guard.counted(skipped, in_a_row), taken, self._loss.clone())
