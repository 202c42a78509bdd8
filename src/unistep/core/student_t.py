"""Noise levels whose logarithm follows a truncated Student-t distribution, of TCM (Lee et al. 2024, arXiv 2410.14895).

    ln(sigma) = mean + scale T,   T of `df` degrees of freedom,   sigma between two bounds

With T = sqrt(df) sinh(s) its density (1 + T^2/df)^(-(df + 1)/2) dT is proportional to cosh(s)^(-df) ds, which is smooth
for the small df that the method has, and is integrated exactly by few points.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_POINTS = 64
_ITERATIONS = 30


@dataclass(frozen=True)
class TruncatedStudentT:
    """The distribution of noise levels.

    Args:
        low, high: lowest and highest noise level.
        mean: location of ln(sigma).
        scale: scale of ln(sigma).
        df: degrees of freedom, above 0; the smaller, the longer the tail.
    """

    low: float
    high: float
    mean: float = 0.0
    scale: float = 0.2
    df: float = 0.01

    def sample(self, uniform: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Turns uniform numbers in [0, 1) into noise levels, in their dtype."""
        first, last = (self._s(level) for level in (self.low, self.high))
        mass = uniform.double() * self._integral(torch.tensor([last], dtype=torch.float64), first).to(uniform.device)
        # Newton's method between bounds that close in: it neither leaves them nor stands still in the tails.
        below, above = torch.full_like(mass, first), torch.full_like(mass, last)
        s = first + uniform.double() * (last - first)
        for _ in range(_ITERATIONS):
            excess = self._integral(s, first) - mass
            below, above = torch.where(excess < 0, s, below), torch.where(excess < 0, above, s)
            newton = s - excess * s.cosh() ** self.df
            s = torch.where((newton >= below) & (newton <= above), newton, (below + above) / 2)
        levels = (self.mean + self.scale * math.sqrt(self.df) * s.sinh()).exp()
        return levels.clamp(self.low, self.high).to(uniform.dtype)

    def _s(self, level: float) -> float:
        return math.asinh((math.log(level) - self.mean) / self.scale / math.sqrt(self.df))

    def _integral(self, s: Tensor, first: float) -> Tensor:
        """The integral of cosh^-df from `first` to each s, by Gauss and Legendre's points."""
        points, weights = (torch.from_numpy(v).to(s) for v in np.polynomial.legendre.leggauss(_POINTS))
        half = (s - first) / 2
        return half * ((first + half[:, None] * (1 + points)).cosh() ** -self.df * weights).sum(1)
