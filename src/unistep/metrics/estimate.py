"""A measured number and how far it can be trusted."""

import math
from dataclasses import dataclass

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A value with the standard error of its sampling: what another draw of as many images would change it by.

    Args:
        value: the measure on the images at hand.
        standard_error: one standard deviation of `value` over draws of the images; not of any bias.
        least, most: what the measure can be; its interval ends there.
    """

    value: float
    standard_error: float
    least: float = -math.inf
    most: float = math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval, value -+ 1.96 standard errors."""
        reach = _Z95 * self.standard_error
        return max(self.value - reach, self.least), min(self.value + reach, self.most)

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {_Z95 * self.standard_error:.2g}"
