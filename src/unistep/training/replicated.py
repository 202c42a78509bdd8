"""The engine of whole networks on every process: PyTorch's DDP, or none for a single process."""

import contextlib
import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unistep.objectives.protocol import Objective


class Replicated:
    """Networks as they are; gradients are averaged over the processes.

    Args:
        accelerator: devices, processes and precision.
    """

    sharded = False

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def place(self, student: nn.Module, objective: Objective) -> nn.Module:
        """Returns the student on the device."""
        device = self.accelerator.device
        for critic in objective.critics().values():
            critic.network.to(device)
        return student.to(device)

    def outline(self, student: nn.Module) -> nn.Module:
        """The student itself."""
        return student

    def own_teacher(self, teacher: nn.Module) -> nn.Module:
        """The teacher itself."""
        return teacher.to(self.accelerator.device)

    def freeze(self, network: nn.Module) -> None:
        """Does nothing."""

    def prepare_model(self, student: nn.Module) -> nn.Module:
        """The student, wrapped where there are several processes."""
        return self.accelerator.prepare_model(student)

    def unsynchronized(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """DDP's context."""
        return self.accelerator.no_sync(model)

    def rest(self, networks: Iterable[nn.Module]) -> None:
        """Does nothing."""

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Averages gradients over the processes."""
        for p in parameters if self.accelerator.num_processes > 1 else ():
            if p.grad is not None:
                p.grad = self.accelerator.reduce(p.grad, "mean")  # pyright: ignore

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """The norm of a gradient, which is then scaled to its limit."""
        if limit == math.inf and self.accelerator.scaler is None:
            return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return torch.as_tensor(self.accelerator.clip_grad_norm_(parameters, limit))

    def whole(self, state: Any) -> Any:
        """The state itself."""
        return state

    def like(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """The state itself."""
        return dict(state)

    def copy(self, student: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the student with other weights, in eval mode."""
        model = copy.deepcopy(student).eval().requires_grad_(False)
        model.load_state_dict(weights)
        return model

    def all_true(self, value: bool) -> bool:
        """The value: it is the same on all processes."""
        return value
