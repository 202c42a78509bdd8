"""Exponential moving averages of the weights, several rates at once.

    ema <- decay_k * ema + (1 - decay_k) * weights

A ramp of the rate lets short runs forget their random start; k counts from 0:

    steps       decay_k = min(decay, (1 + k) / (10 + k))
    half-life   decay_k = 2^(-1/h_k), h_k = min(h, 0.05 (k + 1)), h the half-life of `decay` in steps (EDM's)
    none        decay_k = decay
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unistep.training.config import Ramp


def ramped(decay: float, step: int, ramp: Ramp = "steps") -> float:
    """The rate of step number `step` (from 0)."""
    if ramp == "none" or decay == 0:
        return decay
    if ramp == "steps":
        return min(decay, (1 + step) / (10 + step))
    half_life = math.log(0.5) / math.log(decay)
    return 0.5 ** (1 / min(half_life, 0.05 * (step + 1)))


def own_part(value: Tensor) -> Tensor:
    """The part of a tensor that this process holds; the whole one where it is not parted.

    Args:
        value: tensor.
    """
    to_local: Any = getattr(value, "to_local", None)
    return value if to_local is None else to_local()


@torch.no_grad()
def move_averages(averages: list[Tensor], weights: list[Tensor], weight: float, taken: Tensor | None = None) -> None:
    """Moves averages towards weights in place: average <- average + weight (weights - average).

    Args:
        averages: averages.
        weights: weights, as many and of the same shapes.
        weight: share of the way, in [0, 1].
        taken: whether they move at all, as a tensor of no axes on the device; None is that they do.
    """
    averages, weights = [*map(own_part, averages)], [*map(own_part, weights)]
    if taken is None:
        torch._foreach_lerp_(averages, weights, weight)  # pyright: ignore[reportPrivateImportUsage]
        return
    changes = torch._foreach_sub(weights, averages)  # pyright: ignore[reportPrivateImportUsage]
    # Weights that are no numbers would stay so in a product with 0: a skipped step leaves finite ones.
    torch._foreach_mul_(changes, taken * weight)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(averages, changes)  # pyright: ignore[reportPrivateImportUsage]


class EMA:
    """Averages of a module's parameters; buffers are copied.

    Args:
        module: network that is trained, unwrapped.
        decays: decay rate of each average, in [0, 1).
        ramp: warm-up of the rates.
    """

    def __init__(self, module: nn.Module, decays: Sequence[float], ramp: Ramp = "steps") -> None:
        self.decays = tuple(decays)
        self.ramp: Ramp = ramp
        state = module.state_dict()
        self.averages = {d: {name: v.detach().clone() for name, v in state.items()} for d in self.decays}
        self._averaged = [name for name, _ in module.named_parameters()]
        self._copied = [name for name, _ in module.named_buffers() if name in state]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int, taken: Tensor | None = None) -> None:
        """Takes in the weights after step number `step` (from 0).

        Args:
            module: network that is trained.
            step: number of the step.
            taken: whether the step was taken, as a tensor of no axes on the device; None is a step that was.
        """
        weights = [p.detach() for p in module.parameters()]
        for decay, average in self.averages.items():
            weight = 1 - ramped(decay, step, self.ramp)
            move_averages([average[name] for name in self._averaged], weights, weight, taken)
            for name in self._copied:
                average[name].copy_(module.get_buffer(name))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The averages, by decay as text."""
        return {str(d): average for d, average in self.averages.items()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restores `state_dict`; the decays must be the same."""
        for d, average in self.averages.items():
            for name, value in state[str(d)].items():
                average[name].copy_(value)
