"""Averages of the weights by power functions of time, and averages of any length from snapshots of them.

Source: Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, "Analyzing and Improving the Training Dynamics of Diffusion
Models", arXiv 2312.02696, section 3 and appendix C.

    average at t       = integral_0^t p(tau) weights(tau) dtau,  p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)
    step by step       average <- beta average + (1 - beta) weights,  beta = (1 - 1/t)^(gamma + 1)
    length             standard deviation of p as a share of t: (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^-(1/2)

Snapshots of such averages, at several times and of several lengths, have profiles p_i. The profile of any other length
is their combination with the least squares of the difference, and so is its average of the weights:

    min_x || p - sum_i x_i p_i ||^2,  sum_i x_i = 1

    <p_a, p_b> = (gamma_a + 1) (gamma_b + 1) t^(gamma_a + gamma_b + 1) /
        ((gamma_a + gamma_b + 1) t_a^(gamma_a + 1) t_b^(gamma_b + 1)),  t = min(t_a, t_b)

The paper leaves the sum free, as its networks normalise their weights. Here it would scale what training has not moved:
with 0.2% more than 1, by more than all that the averages differ in.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from unistep.training.ema import move_averages


def exponent(length: float) -> float:
    """Returns gamma, the exponent of the profile of a relative length.

    Args:
        length: standard deviation of the profile as a share of the training, in (0, 12^(-1/2)).
    """
    t = length**-2
    # (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = length^2, as a polynomial in gamma.
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def relative_length(gamma: float) -> float:
    """Returns the standard deviation of a profile as a share of the training."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


@dataclass(frozen=True)
class Profile:
    """A power function that weights are averaged with.

    Args:
        gamma: exponent.
        time: steps that are averaged.
    """

    gamma: float
    time: float

    def dot(self, other: "Profile") -> float:
        """Returns the scalar product of two profiles, as functions of the step."""
        a, b = self, other
        # By logarithms: a power of the time alone leaves the range of numbers.
        powers = (a.gamma + b.gamma + 1) * math.log(min(a.time, b.time))
        powers -= (a.gamma + 1) * math.log(a.time) + (b.gamma + 1) * math.log(b.time)
        return (a.gamma + 1) * (b.gamma + 1) / (a.gamma + b.gamma + 1) * math.exp(powers)


def combination(snapshots: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """Returns the factors of snapshots whose sum is nearest to a profile, and how far it is from it.

    Args:
        snapshots: profiles of the snapshots, all different.
        wanted: profile of the average.

    Returns:
        Factors, which sum to 1; norm of the difference as a share of the norm of the profile.
    """
    profiles = [*snapshots, wanted]
    products = np.array([[a.dot(b) for b in profiles] for a in profiles])
    # Differences from the last one, which takes what the others leave of the sum.
    each = np.eye(len(profiles))
    others, goal = each[:-2] - each[-2], each[-1] - each[-2]
    gram, with_goal = others @ products @ others.T, others @ products @ goal
    # Neighbouring snapshots are nearly the same function: small singular values would only amplify rounding.
    scale = 1 / np.sqrt(np.diag(gram))
    found, *_ = np.linalg.lstsq(gram * np.outer(scale, scale), with_goal * scale, rcond=1e-10)
    factors = [*(found * scale), 1 - found @ scale]
    left = np.array([*factors, -1.0])
    return list(map(float, factors)), math.sqrt(max(left @ products @ left, 0.0) / products[-1, -1])


class PowerAverages:
    """Averages of a module's parameters, one a length.

    Args:
        module: network that is trained, unwrapped.
        lengths: relative lengths of the averages; none keeps none.
        begun: step that they begin at.
    """

    def __init__(self, module: nn.Module, lengths: Sequence[float], begun: int = 0) -> None:
        self.begun = begun
        self.gammas = {length: exponent(length) for length in lengths}
        self.averages = {
            length: {name: p.detach().clone() for name, p in module.named_parameters()} for length in lengths
        }

    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the weights after step number `step` (from 0), one that left them as they were too.

        Time passes in steps that are skipped or that train a critic: else the average would be of another length.

        Args:
            module: network that is trained.
            step: number of the step.
        """
        if not self.averages:
            return
        weights = [p.detach() for p in module.parameters()]
        for length, average in self.averages.items():
            weight = 1 - (1 - 1 / (step - self.begun + 1)) ** (self.gammas[length] + 1)
            move_averages([*average.values()], weights, weight)

    def state_dict(self) -> dict[str, Any]:
        """The averages by length as text, and the step that they began at."""
        return {"begun": self.begun, "averages": {str(length): own for length, own in self.averages.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`; the lengths must be the same.

        Raises:
            KeyError: there is no average of a length, or it is of another network.
        """
        with torch.no_grad():
            for length, average in self.averages.items():
                for name, value in average.items():
                    value.copy_(state["averages"][str(length)][name])
        self.begun = state["begun"]
