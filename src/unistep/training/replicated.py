"""The engine of whole networks on every process: PyTorch's DDP, or none for a single process."""

import contextlib
import copy
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unistep.networks.block import compile_blocks
from unistep.objectives.protocol import Objective
from unistep.training.snapshot import in_main_memory


def mean_in_order(values: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Averages a vector over all processes in place, with sums in the order of the processes.

    Each process adds up a part of it, so that as much is sent as by an all-reduce. Gloo's order in that depends on the
    place of a number in the vector. DDP moves gradients to other places after the first step of every start: a run of
    more than two processes that was resumed would differ in the last bit.

    Args:
        values: vector of this process; all have the same length.
    """
    count = dist.get_world_size()
    parts = values.new_zeros(count, -(-len(values) // count))
    parts.view(-1)[: len(values)] = values / count
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts)
    for part in received[1:]:
        received[0] += part
    dist.all_gather(list(parts), received[0])
    return values.copy_(parts.view(-1)[: len(values)])


def _average_bucket(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # pyright: ignore
    done = torch.futures.Future[Tensor]()
    done.set_result(mean_in_order(bucket.buffer()))
    return done


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
        model = self.accelerator.prepare_model(student)
        if isinstance(model, DistributedDataParallel) and self.accelerator.device.type == "cpu":
            model.register_comm_hook(None, _average_bucket)
        return model

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

    def snapshot(self, state: Any) -> Any:
        """A copy of the state, on the first process; on the others nothing is copied."""
        return in_main_memory(state) if self.accelerator.is_main_process else {}

    def store(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        """The state itself."""
        return state

    def like(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """The state itself."""
        return dict(state)

    def copy(self, student: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the student with other weights, in eval mode."""
        model = copy.deepcopy(student).eval().requires_grad_(False)
        compile_blocks(model, on=False)  # batches of other sizes would be compiled anew
        model.load_state_dict(weights)
        return model

    def all_true(self, value: bool) -> bool:
        """The value: it is the same on all processes."""
        return value
