"""The engine of networks in parts: FSDP2, PyTorch's `fully_shard`, over Gloo on CPUs and NCCL on GPUs.

Each block of a network is parted by itself, so that a process holds the whole weights of one block at a time. Weights,
gradients, averages and moments are DTensors, whose operations work on the part of the process. Accelerate's own road to
FSDP2 leads to accelerators alone; this one is the same on a CPU.

Networks compute in fp32 weights under autocast as those of the other engine, so that the numbers are the same.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from unistep.core.parameterization import Preconditioned
from unistep.networks.block import blocks_of
from unistep.objectives.protocol import Objective
from unistep.training.engines import norm_of
from unistep.training.parts import write_parts
from unistep.training.snapshot import copied, in_main_memory


class Sharded:
    """Networks in as many parts as there are processes.

    Args:
        accelerator: devices, processes and precision.
    """

    sharded = True

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        self._outline: nn.Module | None = None
        # Of the thread that writes checkpoints: what its processes say must not come between what training says.
        self._writers: Any = dist.new_group(backend="gloo")
        self._in_main_memory = DeviceMesh.from_group(self._writers, "cpu")

    def place(self, student: nn.Module, objective: Objective) -> nn.Module:
        """Parts the student and the networks of the objective."""
        self._outline = _without_weights(student)
        for critic in objective.critics().values():
            # A loss may be of features alone: then no gradient of the output gathers the weights that it needs.
            self._shard(critic.network, kept=True)
        for network in (student, *objective.networks().values()):
            self._shard(network)
        return student

    def outline(self, student: nn.Module) -> nn.Module:
        """The student before it was parted, without numbers."""
        assert self._outline is not None  # `place` has made it
        return self._outline

    def own_teacher(self, teacher: nn.Module) -> nn.Module:
        """A copy of the teacher, which is parted later: other stages begin from the whole one."""
        return copy.deepcopy(teacher)

    def freeze(self, network: nn.Module) -> None:
        """Parts a teacher."""
        self._shard(network.requires_grad_(False))

    def prepare_model(self, student: nn.Module) -> nn.Module:
        """The student itself."""
        return student

    @contextlib.contextmanager
    def unsynchronized(self, model: nn.Module) -> Iterator[None]:
        """A context whose gradients stay whole on each process."""
        parts = _parts(model)
        for part in parts:
            part.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for part in parts:
                part.set_requires_gradient_sync(True, recurse=False)

    def rest(self, networks: Iterable[nn.Module]) -> None:
        """Parts networks again that no backward pass has gone through."""
        for part in (part for network in networks for part in _parts(network)):
            part.reshard()

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Averages the gradients of what is not parted."""
        for p in parameters:
            if p.grad is not None and not isinstance(p.grad, DTensor):
                p.grad = self.accelerator.reduce(p.grad, "mean")  # pyright: ignore

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """The norm over all parts."""
        return _put_together(norm_of(parameters, limit))

    def whole(self, state: Any) -> Any:
        """A state in main memory, on the first process; on the others what is parted is None."""
        if isinstance(state, DTensor):
            # One after the other: no process but the first holds more than one of them.
            found = state.full_tensor()
            return found.cpu() if self.accelerator.is_main_process else None
        if isinstance(state, Mapping):
            return {name: self.whole(value) for name, value in state.items()}
        if isinstance(state, list | tuple):
            return type(state)(self.whole(value) for value in state)
        return state

    def snapshot(self, state: Any) -> Any:
        """A copy of this process's parts."""
        return in_main_memory(state, self._copied)

    def store(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        """Writes this process's parts to a file of its own, with the others."""
        return write_parts(path, state, self._writers)

    def like(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """This process's parts of whole tensors."""
        return {name: _parted(value, own.get(name)) for name, value in state.items()}

    def copy(self, student: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
        """A whole copy of the student, on every process."""
        model = copy.deepcopy(self.outline(student))
        model.load_state_dict({name: _put_together(value) for name, value in weights.items()}, assign=True)
        return model.eval().requires_grad_(False)

    def all_true(self, value: bool) -> bool:
        """Whether the value is true on all processes."""
        number = torch.tensor(float(value), device=self.accelerator.device)
        return float(self.accelerator.reduce(number, "sum")) == self.accelerator.num_processes  # pyright: ignore

    def _copied(self, value: Tensor) -> Tensor:
        if not isinstance(value, DTensor):
            return copied(value)
        shape = {"shape": value.shape, "stride": value.stride()}
        own = copied(value.to_local())
        return DTensor.from_local(own, self._in_main_memory, value.placements, run_check=False, **shape)

    def _shard(self, module: nn.Module, *, kept: bool = False) -> None:
        """Parts a network block by block; what lies outside of the blocks is one more part.

        Args:
            module: network, `Preconditioned`, or a module that has some.
            kept: whether what lies outside stays whole from the forward pass to the end of the backward pass.
        """
        for inner in [part.network for part in module.modules() if isinstance(part, Preconditioned)]:
            for block in blocks_of(inner):
                self._part(block, kept=False)
            self._part(inner, kept=kept)
        self._part(module, kept=kept)

    def _part(self, module: nn.Module, *, kept: bool) -> None:
        if any(not isinstance(p, DTensor) for p in module.parameters()):
            fully_shard(module, mesh=self._mesh, reshard_after_forward=not kept)


def _parts(network: nn.Module) -> list[Any]:
    return [part for part in network.modules() if isinstance(part, FSDPModule)]


def _without_weights(student: nn.Module) -> nn.Module:
    """A copy whose parameters hold no numbers."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), False) for p in student.parameters()}
    return copy.deepcopy(student, memo)


def _put_together(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _parted(value: Any, own: Any) -> Any:
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or isinstance(value, DTensor):
        return value
    # Every process has the whole tensor, and takes its part: none sends anything.
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)
