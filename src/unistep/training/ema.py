"""Exponential moving averages of the weights, several rates at once.

    ema <- decay_k * ema + (1 - decay_k) * weights,   decay_k = min(decay, (1 + k) / (10 + k))

The ramp lets short runs forget their random start.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EMA:
    """Averages of a module's parameters; buffers are copied.

    Args:
        module: the network being trained, unwrapped.
        decays: one average is kept for each, in [0, 1).
    """

    def __init__(self, module: nn.Module, decays: Sequence[float]) -> None:
        self.decays = tuple(decays)
        state = module.state_dict()
        self.averages = {d: {name: v.detach().clone() for name, v in state.items()} for d in self.decays}
        self._averaged = [name for name, _ in module.named_parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the weights after step number `step` (from 0)."""
        state = module.state_dict()
        for decay, average in self.averages.items():
            weight = 1 - min(decay, (1 + step) / (10 + step))
            for name in self._averaged:
                average[name].lerp_(state[name], weight)
            for name in average.keys() - set(self._averaged):
                average[name].copy_(state[name])

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The averages, by decay as text."""
        return {str(d): average for d, average in self.averages.items()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restores `state_dict`; the decays must be the same."""
        for d, average in self.averages.items():
            for name, value in state[str(d)].items():
                average[name].copy_(value)
