"""Networks without weights, into which a file is loaded."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Functions by which the constructors of layers fill weights: methods, and functions of torch.nn.init.
_FILLING = {
    Tensor.uniform_,
    Tensor.normal_,
    Tensor.zero_,
    Tensor.fill_,
    torch.nn.init.uniform_,
    torch.nn.init.normal_,
    torch.nn.init.kaiming_uniform_,
}
_DRAWING = {torch.rand, torch.randn}


def without_weights() -> AbstractContextManager[Any]:
    """A context in which networks are built with weights of shapes alone, on the meta device; nothing is drawn.

    Buffers that are computed, as the taps of a filter, have their values; those that are drawn are 0.
    `torch.device("meta")` has the same effect, but the first arithmetic on that device makes torch import its
    decompositions, and sympy, which takes longer than opening a large model.
    """
    return _WithoutWeights()


class _WithoutWeights(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in _FILLING:
            weight = args[0] if args else options["tensor"]
            if weight.is_meta:
                return weight
        if func in _DRAWING:
            options.pop("generator", None)
            return torch.zeros(*args, **options)
        if func is torch.empty:
            options["device"] = "meta"
        return func(*args, **options)
