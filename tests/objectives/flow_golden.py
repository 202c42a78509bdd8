"""Networks and comparison of the golden values of flow maps."""

import math
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = (torch.float64, torch.float32)


class FlowToy(nn.Module):
    """a x + b sin(2 t) flip(x) + c tanh(x) + d cos(3 s) x + g cos(y), of trainable p = (a, b, c, d, g)."""

    def __init__(self, p: list[float], dtype: torch.dtype) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p, dtype=dtype))

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor | None) -> Tensor:
        a, b, c, d, g = self.p
        t = t.view(-1, 1, 1, 1)
        out = a * x + b * (2 * t).sin() * x.flip(-1) + c * x.tanh()
        if s is not None:
            out = out + d * (3 * s.view(-1, 1, 1, 1)).cos() * x
        return out if y is None else out + g * y.to(x.dtype).view(-1, 1, 1, 1).cos()


class SigmaToy(nn.Module):
    """The toy of the other golden values, of trainable p = (a, b, c), as a network."""

    def __init__(self, p: list[float], dtype: torch.dtype) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p, dtype=dtype))

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        a, b, c = self.p
        return a * x + b * (0.01 * c_noise).sin().view(-1, 1, 1, 1) * x.flip(-1) + c * x.tanh()


class Case:
    """One case of a file of golden values, in one dtype."""

    def __init__(self, golden: Any, method: str, name: str, dtype: torch.dtype) -> None:
        self.method, self.name, self.dtype = method, name, dtype
        self.about = golden.json(f"{method}.json")
        self.spec = next((case for case in self.about["cases"] if case["name"] == name), {})
        self.values = golden.tensors(f"{method}.npz")
        self.losing = self.about["independent_check"]["float32_above_2e-6"]

    def __getitem__(self, key: str) -> Tensor:
        """The array of the case, or the one that the cases share; floating numbers in the case's dtype."""
        value = self.values.get(f"{self.name}.{key}", self.values.get(key))
        assert value is not None, key
        return value.to(self.dtype) if value.is_floating_point() else value

    def check(self, key: str, found: Tensor) -> None:
        """Largest difference relative to the largest value: 1e-9 in float64, 1e-5 or what cancellation leaves."""
        expected = self.values[f"{self.name}.{key}"] if f"{self.name}.{key}" in self.values else self.values[key]
        error = float((found.detach().double() - expected).abs().max() / expected.abs().max().clamp_min(1e-300))
        bar = 1e-9 if self.dtype == torch.float64 else max(1e-5, 4 * self.losing.get(f"{self.name}.{key}", 0.0))
        assert math.isfinite(error) and error <= bar, f"{self.method} {self.name}.{key}: {error:.1e} > {bar:.1e}"

    def check_gradient(self, loss: Tensor, toy: nn.Module, key: str = "grad") -> None:
        """The gradient of a loss with respect to the weights of a toy."""
        (gradient,) = torch.autograd.grad(loss, [toy.p], retain_graph=True)
        self.check(key, gradient)


def cases(golden_folder: Any, method: str) -> list[str]:
    import json

    return [case["name"] for case in json.loads((golden_folder / f"{method}.json").read_text())["cases"]]
