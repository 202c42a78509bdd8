"""Networks that an objective keeps beside the student."""

import copy

from torch import nn


def copy_target(student: nn.Module) -> nn.Module:
    """A frozen copy of the student in training mode, whatever the student's: it drops what the student will drop."""
    return copy.deepcopy(student).requires_grad_(False).train()
