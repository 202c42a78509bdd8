"""FLOPs and memory of a training step, counted without computing it.

They are counted on the objective itself, run forward and backward on tensors without content (PyTorch's
FakeTensorMode): the evaluations of the method are the ones that are counted, and no memory is used. Where networks are
trained in turn, FLOPs are the mean over the steps, and memory is that of the step that takes most.

    FLOPs        2 x MACs of convolutions, matrix products and attention; everything else is small beside them
    memory       fp32 weights, gradients, the optimizer's moments, averages, the other networks, and what the backward
                 pass keeps

The backward pass of convolutions and matrix products takes twice the FLOPs of the forward pass. What it keeps grows
linearly with the micro-batch, beside the weights that autocast has cast, so it is counted for one image and for two.
Where it computes the activations of blocks again, those of the largest block come to the inputs that are kept.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from unistep.config import RunConfig
from unistep.core.random import ImageRandom
from unistep.networks.block import blocks_of
from unistep.training.optimizer import moments_of, update_flops
from unistep.workflows.estimate.design import build_parts
from unistep.workflows.estimate.measure import AVERAGES, OPTIMIZER, Memory, Parts, turns
from unistep.workflows.runs.design import ImageKind, StageDesign

FLOPS_PARTS = (
    "student, forward",
    "tangent, about",
    "teacher, forward",
    "target, forward",
    "LPIPS, forward",
    "the rest of the loss",
    "backward",
)
"""Purposes of the FLOPs of a training step, in the order they run; not every method has all."""

FP32 = 4  # bytes


@dataclass(frozen=True)
class Flops:
    """FLOPs an image.

    Args:
        evaluation: FLOPs of one network evaluation.
        parts: FLOPs of a training step by purpose.
        update: FLOPs of an update of the weights, once a step.
    """

    evaluation: int
    parts: dict[str, int]
    update: int = 0

    @property
    def total(self) -> int:
        """FLOPs of a training step."""
        return sum(self.parts.values())


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return flop_counter.sdpa_flop_count(query, key, value)


def _attention_backward(
    gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return flop_counter.sdpa_backward_flop_count(gradient, query, key, value)


# PyTorch's counter knows the kernels of GPUs alone.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class _Fake(FakeTensorMode):
    """Tensors without content; networks of them can be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Fake":
        return self


def count(
    config: RunConfig, design: StageDesign, images: ImageKind, accelerator: Accelerator
) -> tuple[str, Flops, Memory]:
    """The class of a stage's network, and FLOPs and memory of a training step.

    Args:
        config: run.
        design: stage.
        images: images that it is trained on.
        accelerator: device and precision.
    """
    # Copies of such tensors ask where their content is; it is not needed.
    with warnings.catch_warnings(action="ignore"), _Fake(), torch.device(accelerator.device):
        parts, again = _built(config, design), config.activation_checkpointing
        steps, total, kept = design.stage.steps, dict[str, float](), list[tuple[int, int]]()
        evaluation = 0
        # Keeps what blocks make, where the other does not.
        plain = _built(replace(config, activation_checkpointing=False), design) if again else parts
        for step, share in turns(parts.objective, steps, steps // 2):
            counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
            with counter, _tallied(parts, counter) as tally:
                losses, of_one, _ = _forward(parts, step, images, accelerator, 1)
                forward = counter.get_total_flops()
                losses.float().mean().backward()
                tally["the rest of the loss"] = forward - sum(tally.values())
                tally["backward"] = counter.get_total_flops() - forward
            of_two = _forward(parts, step, images, accelerator, 2)[1]
            if again:
                of_one += _forward(plain, step, images, accelerator, 1)[2]
                of_two += _forward(plain, step, images, accelerator, 2)[2]
            kept.append((of_one, of_two))
            evaluation = max(evaluation, tally.get("student, forward", 0))
            for name, flops in tally.items():
                total[name] = total.get(name, 0) + share * flops
    parameters, averages = _size(parts.student), len(design.stage.ema_decays) + len(design.stage.ema_lengths)
    critics = [_size(critic.network) for critic in parts.objective.critics().values()]
    sizes = {"weights": parameters, "gradients": max([parameters, *critics])}  # of one network at a time
    trained = [parts.student, *(critic.network for critic in parts.objective.critics().values())]
    optimizer = design.stage.optimizer.name
    moments = sum(moments_of(p, optimizer) * p.numel() for one in trained for p in one.parameters())
    update = sum(update_flops(p, optimizer) for p in parts.student.parameters())
    sizes |= {OPTIMIZER: moments, AVERAGES: averages * parameters}
    sizes |= {name: _size(network) for name, network in parts.others.items()}
    beside = sum(tensor.numel() for tensor in parts.objective.state_dict().values())  # a target's, or a critic's
    copied = parameters + beside + sizes[OPTIMIZER] + sizes[AVERAGES]
    of_one, of_two = max(kept, key=lambda bytes_: bytes_[1])
    return (
        type(parts.student.network).__name__,
        Flops(evaluation, {name: round(n) for name, n in total.items() if n}, update),
        Memory(
            {name: FP32 * n for name, n in sizes.items()}, max(0, 2 * of_one - of_two), of_two - of_one, FP32 * copied
        ),
    )


def _built(config: RunConfig, design: StageDesign) -> Parts:
    """The stage, with an objective whose cost can be counted."""
    parts = build_parts(config, design)
    return replace(parts, objective=parts.objective.countable())


def _forward(
    parts: Parts, step: int, images: ImageKind, accelerator: Accelerator, batch: int
) -> tuple[Tensor, int, int]:
    """The losses, the bytes that are kept for the backward pass, and the most of them that are made in one block."""
    x = torch.zeros(batch, *images.shape)
    labels = torch.zeros(batch, dtype=torch.int64) if images.classes else None
    networks = (parts.student, *parts.others.values())
    weights = {p.untyped_storage()._cdata for network in networks for p in network.parameters()}
    kept: dict[int, Any] = {}
    begun: list[set[int]] = []
    made = [0]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, or its number might be given to another
        return tensor

    def begin(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        begun.append({*kept, *weights, *(one.untyped_storage()._cdata for one in inputs if isinstance(one, Tensor))})

    def end(*_: object) -> None:
        before = begun.pop()
        made.append(sum(storage.nbytes() for number, storage in kept.items() if number not in before))

    blocks = {block for network in networks for part in network.modules() for block in blocks_of(part)}
    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(begin).remove)
            stack.callback(block.register_forward_hook(end).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        stack.enter_context(accelerator.autocast())
        random = ImageRandom(list(range(batch)), accelerator.device)
        losses = parts.objective.loss(parts.student, x, labels, step, random, 0)
    return losses, sum(storage.nbytes() for number, storage in kept.items() if number not in weights), max(made)


@contextlib.contextmanager
def _tallied(parts: Parts, counter: FlopCounterMode) -> Iterator[dict[str, int]]:
    """While entered, the FLOPs of every network's evaluations by what they are for."""
    tally: dict[str, int] = {}
    begun: list[int] = []

    def begin(*_: object) -> None:
        begun.append(counter.get_total_flops())

    def end(name: str) -> None:
        tally[name] = tally.get(name, 0) + counter.get_total_flops() - begun.pop()

    def end_of_student(*_: object) -> None:
        if torch.is_grad_enabled():
            end("student, forward")
        else:
            end(parts.objective.ungraded)

    handles = []
    # Continuous-time objectives evaluate the network beside the student that it is in.
    named = {name: getattr(network, "network", network) for name, network in parts.others.items()}
    for name, network in (("student", parts.student.network), *named.items()):
        handles.append(network.register_forward_pre_hook(begin))
        after = end_of_student if name == "student" else lambda *_, name=name: end(f"{name}, forward")
        handles.append(network.register_forward_hook(after))
    try:
        yield tally
    finally:
        for handle in handles:
            handle.remove()


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
