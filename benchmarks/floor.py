"""The floor of a network's evaluation: the sum of its convolutions, matrix products and attentions, each by the faster
of its forms, and of nothing else.

The operations are recorded in one evaluation; then each is timed alone, on tensors of the same shapes, types and memory
formats, its input warm in the cache, its weights not. Elements that are normalized, added or copied do not count.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unistep.networks import kernels

_LAST = torch.channels_last
Key = tuple[Any, ...]


class _Record(TorchFunctionMode):
    """Counts operations by what their time depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Key] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (torch.conv2d, F.conv2d):
            x, weight = args[0], args[1]
            stride, padding = (args[3:5] + (1, 0))[:2] if len(args) > 4 else (given.get("stride", 1), given["padding"])
            last = x.is_contiguous(memory_format=_LAST) and x.ndim == 4
            self.counts["conv", tuple(x.shape), tuple(weight.shape), stride, padding, x.dtype, last] += 1
        elif func is F.linear:
            self.counts["linear", tuple(args[0].shape), tuple(args[1].shape), args[0].dtype] += 1
        elif func is F.scaled_dot_product_attention:
            self.counts["attention", tuple(args[0].shape), args[0].dtype] += 1
        return func(*args, **given)


def operations(run: Callable[[], object]) -> Mapping[Key, int]:
    """The operations of an evaluation and how often each is in it.

    Args:
        run: function that evaluates the network.
    """
    before, record = kernels.is_swift, _Record()
    kernels.is_swift = lambda x: False  # in their plain forms they can be told apart
    try:
        with torch.no_grad(), record:
            run()
    finally:
        kernels.is_swift = before
    return record.counts


class Floor:
    """The least times of operations so far.

    Args:
        counts: operations.
    """

    def __init__(self, counts: Mapping[Key, int]) -> None:
        self.counts = counts
        self.forms = {key: _forms(key) for key in counts}
        self.best = dict.fromkeys(counts, float("inf"))

    @torch.no_grad()
    def turn(self) -> dict[str, float]:
        """Times every operation once more; returns the seconds of an evaluation by kind of operation, and of all."""
        for key, forms in self.forms.items():
            for warm, form in forms:
                for x in warm:
                    x.mul_(1)
                began = time.perf_counter()
                form()
                self.best[key] = min(self.best[key], time.perf_counter() - began)
        sums: Counter[str] = Counter()
        for key, count in self.counts.items():
            sums[key[0]] += count * self.best[key]
        return dict(sums) | {"seconds": sum(sums.values())}


def _forms(key: Key) -> list[tuple[list[Tensor], Callable[[], object]]]:
    """The inputs and the forms of an operation."""
    kind, shape, *rest = key
    dtype = rest[-2] if kind == "conv" else rest[-1]
    x = torch.randn(shape).to(dtype)
    if kind == "attention":
        b, heads, n, dim = shape
        q, k, v = (torch.randn(b, n, heads * dim).to(dtype).view(b, n, heads, dim).transpose(1, 2) for _ in range(3))
        fused = F.scaled_dot_product_attention
        return [([q, k, v], lambda: fused(q, k, v)), ([q, k, v], lambda: kernels.attention(q, k, v))]
    weight = torch.randn(rest[0]).to(dtype) * 0.02
    bias = torch.zeros(rest[0][0], dtype=dtype)
    if kind == "linear":
        return [([x], lambda: F.linear(x, weight, bias))]
    _, stride, padding, _, last = rest
    if last:
        x, weight = x.to(memory_format=_LAST), weight.to(memory_format=_LAST)
    forms: list[tuple[list[Tensor], Callable[[], object]]] = [([x], lambda: F.conv2d(x, weight, bias, stride, padding))]
    ones = stride in (1, (1, 1)) and rest[0][2:] == (3, 3)
    if last and ones and shape[0] * shape[2] * shape[3] <= 256 and dtype is torch.bfloat16:
        patches = weight.permute(0, 2, 3, 1)
        forms.append(([x], lambda: kernels._as_product(x, patches, bias)))
    return forms
