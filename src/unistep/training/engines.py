"""Engines: the ways in which several processes share the networks of a training.

ddp     every process holds all networks whole; gradients are averaged
fsdp    every process holds a part of each weight, its gradient, averages and moments; a block's weights are gathered
        while it computes (FSDP2, `torch.distributed.fsdp.fully_shard`)

An objective sees neither: it calls networks. A single process has the first one.
"""

import contextlib
import math
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unistep.errors import UserError
from unistep.objectives.protocol import Objective
from unistep.training.config import EngineName


@runtime_checkable
class Engine(Protocol):
    """A way of sharing networks. All its methods but `prepare_model` are called on all processes."""

    accelerator: Accelerator
    sharded: bool
    """Whether weights, averages and moments are parts."""

    def place(self, student: nn.Module, objective: Objective) -> nn.Module:
        """Returns the student on the device, with the networks beside it, before averages and optimizer are made.

        Args:
            student: network that is trained.
            objective: loss, and the networks beside the student.
        """
        ...

    def outline(self, student: nn.Module) -> nn.Module:
        """The student as it was made, whose weights may have shapes alone.

        Args:
            student: network that `place` returned.
        """
        ...

    def own_teacher(self, teacher: nn.Module) -> nn.Module:
        """A teacher for one stage, on the device, before the objective is made.

        Args:
            teacher: network that other stages may have too.
        """
        ...

    def freeze(self, network: nn.Module) -> None:
        """Shares the weights of a network without gradients, after the objective is made.

        Args:
            network: teacher that `own_teacher` returned.
        """
        ...

    def prepare_model(self, student: nn.Module) -> nn.Module:
        """The student as the objective calls it.

        Args:
            student: network that `place` returned.
        """
        ...

    def unsynchronized(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """A context whose backward passes leave the gradients of processes apart.

        Args:
            model: network that `prepare_model` returned.
        """
        ...

    def rest(self, networks: Iterable[nn.Module]) -> None:
        """Leaves networks as they are between two steps, after the backward pass.

        Args:
            networks: networks that are trained in turn with the student.
        """
        ...

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Averages gradients over the processes, where the network itself does not.

        Args:
            parameters: parameters beside the student.
        """
        ...

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """The norm of a gradient over all processes, which is then scaled to its limit.

        Args:
            parameters: parameters of a network.
            limit: largest norm; infinity leaves it.
        """
        ...

    def whole(self, state: Any) -> Any:
        """A state whose parts are put together; in main memory, and on the first process alone, where they are parts.

        Args:
            state: mappings and lists of tensors and other values.
        """
        ...

    def snapshot(self, state: Any) -> Any:
        """A copy of a state in main memory, that training goes on beside; of this process's parts, where it has some.

        Args:
            state: mappings and lists of tensors and other values.
        """
        ...

    def store(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        """Writes the tensors that are parts to files beside a checkpoint, on a thread beside training.

        Args:
            path: the checkpoint; what is to be written there is not yet.
            state: state that `snapshot` returned, of the same step on all processes.

        Returns:
            What is left of the state, for the checkpoint itself, on the first process.

        Raises:
            OSError: a process cannot write; on all processes.
        """
        ...

    def like(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """This process's parts of a whole state.

        Args:
            state: whole tensors by name.
            own: tensors by the same names that are parted as wanted.
        """
        ...

    def copy(self, student: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
        """A whole copy of the student with other weights, in eval mode, on every process.

        Args:
            student: network that `place` returned.
            weights: its weights, parted as the student's.
        """
        ...

    def all_true(self, value: bool) -> bool:
        """Whether a value that may differ by the part is true on all processes."""
        ...


@dataclass(frozen=True)
class EngineRow:
    """A row of `ENGINES`.

    Args:
        title: name in words.
        place: `module:class` of the engine, imported where it is used.
    """

    title: str
    place: str


ENGINES: Mapping[EngineName, EngineRow] = MappingProxyType(
    {
        "ddp": EngineRow("whole networks, averaged gradients", "unistep.training.replicated:Replicated"),
        "fsdp": EngineRow("networks in parts (FSDP2)", "unistep.training.sharded:Sharded"),
    }
)
"""The rows by name."""


def build_engine(name: EngineName, accelerator: Accelerator) -> Engine:
    """The engine of a run.

    Args:
        name: its name; a single process has whole networks always.
        accelerator: devices, processes and precision.

    Raises:
        UserError: the device or the precision has no such engine.
    """
    if accelerator.num_processes == 1:
        name = "ddp"
    if name == "fsdp" and accelerator.scaler is not None:
        raise UserError("`engine` fsdp does not scale the gradients of fp16; give `precision` bf16 or fp32")
    return pkgutil.resolve_name(ENGINES[name].place)(accelerator)


def norm_of(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """The norm of a gradient, which is then scaled to its limit.

    Args:
        parameters: parameters of a network.
        limit: largest norm; infinity leaves it.
    """
    found = [*parameters]
    norm = torch.nn.utils.get_total_norm([p.grad for p in found if p.grad is not None])
    if limit < math.inf:
        torch.nn.utils.clip_grads_with_norm_(found, limit, norm)
    return norm
