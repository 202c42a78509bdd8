"""Copies of a state, that training goes on beside."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def copied(tensor: Tensor) -> Tensor:
    """A copy in main memory.

    Args:
        tensor: tensor that is whole on this process.
    """
    return tensor.detach().to("cpu", copy=True)


def in_main_memory(state: Any, copy: Callable[[Tensor], Tensor] = copied) -> Any:
    """A copy of a state.

    Args:
        state: mappings and lists of tensors and other values.
        copy: makes the copy of a tensor.
    """
    if isinstance(state, Tensor):
        return copy(state)
    if isinstance(state, Mapping):
        return {name: in_main_memory(value, copy) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(in_main_memory(value, copy) for value in state)
    return state
