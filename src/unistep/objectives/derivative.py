"""Forward-mode derivatives of networks, where PyTorch's fast kernels have none."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


def jvp(f: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The value of `f` at `primals` and its derivative in the direction `tangents`."""
    value, derivative, *_ = torch.func.jvp(f, primals, tangents)
    return value, derivative


@contextlib.contextmanager
def differentiable(device: str) -> Iterator[None]:
    """Makes the networks of this package differentiable in forward mode, under autocast too.

    Args:
        device: type of the device that they compute on.
    """
    # Weights that autocast casts here have no gradient; it must not keep them for the pass that wants one.
    uncached = torch.autocast(device, enabled=torch.is_autocast_enabled(device), cache_enabled=False)
    # Of the kernels of attention only this one has a forward-mode derivative.
    with uncached, sdpa_kernel(SDPBackend.MATH), _DifferentiableNorms():
        yield


class _DifferentiableNorms(TorchFunctionMode):
    """GroupNorm of contiguous images in the dtype of the weights, where its forward-mode derivative is right.

    With other strides it has none, and under autocast on a CPU the derivative has another dtype than the value.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is functional.group_norm:
            func = _group_norm
        return func(*args, **(kwargs or {}))


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    if weight is not None:
        input = input.to(weight.dtype)
    return functional.group_norm(input.contiguous(), num_groups, weight, bias, eps)
