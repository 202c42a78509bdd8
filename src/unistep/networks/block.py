"""Blocks of networks, which may compute their activations again in the backward pass instead of keeping them.

A block that does so keeps its inputs alone (activation checkpointing; Chen et al. 2016, arXiv 1604.06174): a step takes
the memory of one block's activations beside them, and one forward pass more. Gradients are the same to the bit. The
names of the weights are those of the block without it.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

_MOST_SHAPES = 256  # of the blocks of one kind, each of which is compiled; PyTorch stops at 8 by default


class Block(nn.Module):
    """Base of a part of a network that is called with all that it computes from; `compute` is its function."""

    recomputes: bool = False
    """Whether the backward pass computes the activations again."""

    compiles: bool = False
    """Whether `torch.compile` compiles the block, but for derivatives in forward mode."""

    compute: Callable[..., Tensor]

    def forward(self, *inputs: Any) -> Tensor:
        """Returns the output of `compute`."""
        compute = self.compute
        inputs = tuple(map(_joined, inputs))
        if self.compiles and not _in_forward_mode(inputs):
            compute = functools.partial(_compiled(type(self).compute), self)
        # Weights without a gradient have one again when the backward pass comes, and would save more than before.
        if self.recomputes and torch.is_grad_enabled() and next(self.parameters()).requires_grad:
            return _recomputed(compute, *inputs)
        return compute(*inputs)


def _joined(value: Any) -> Any:
    """A view of a tensor, whose gradients within a block are added up before those from outside of it are.

    Networks in parts (FSDP2) have such a node in the graph at each block: the order of sums, and so the last bit of
    gradients, is that of whole networks.
    """
    return value.view_as(value) if isinstance(value, Tensor) and value.requires_grad else value


@functools.cache
def _compiled(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # Versions of PyTorch before 2.13 may have no such limit for a function: they leave the ninth shape uncompiled.
    known = inspect.signature(torch.compile).parameters
    more: dict[str, Any] = {"recompile_limit": _MOST_SHAPES} if "recompile_limit" in known else {}
    return torch.compile(compute, dynamic=False, **more)


def _in_forward_mode(inputs: tuple[Any, ...]) -> bool:
    """Whether a derivative in forward mode goes through the block."""
    return any(isinstance(one, Tensor) and forward_ad.unpack_dual(one).tangent is not None for one in inputs)


def _recomputed(compute: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """The output of a function of tensors and a generator, or none, whose backward pass calls it again."""
    generator = next((one for one in inputs if isinstance(one, torch.Generator)), None)
    if generator is None:
        return _checkpoint(compute, *inputs)
    before, called = generator.get_state(), False

    def again(*given: Any) -> Tensor:
        """Draws the same numbers in every call; the first one moves the generator on."""
        nonlocal called
        if called:
            same = torch.Generator(generator.device)
            same.set_state(before)
            given = tuple(same if one is generator else one for one in given)
        called = True
        return compute(*given)

    return _checkpoint(again, *inputs)


def _checkpoint(function: Callable[..., Tensor], *inputs: Any) -> Any:
    # Nothing is drawn from PyTorch's own generator, whose state it would keep.
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks that a network names by its method `blocks`; none of a network without it.

    Args:
        network: network.
    """
    blocks: Any = getattr(network, "blocks", None)
    return [] if blocks is None else blocks()


def recompute_blocks(module: nn.Module) -> bool:
    """Makes the blocks of networks compute their activations again; returns whether there are some that can.

    Args:
        module: network in training, or a module that has some.
    """
    found = _all_blocks(module)
    for block in found:
        block.recomputes = True
    return bool(found)


def compile_blocks(module: nn.Module, on: bool = True) -> bool:
    """Has the blocks of networks compiled, each by itself; returns whether there are some that can be.

    Args:
        module: network, or a module that has some.
        on: whether they are compiled from now on.
    """
    found = _all_blocks(module)
    for block in found:
        block.compiles = on
    return bool(found)


def _all_blocks(module: nn.Module) -> list[Block]:
    return [block for part in module.modules() for block in blocks_of(part) if isinstance(block, Block)]
