"""A number with its standard error."""

import math
from dataclasses import dataclass

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A number with the standard error of its sampling: the change by another draw of as many images.

    Args:
        value: number on the images at hand.
        standard_error: standard deviation of `value` over draws of the images; no bias is in it.
        least, most: bounds of the number, at which its interval ends.
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


def proportion(count: int, total: int) -> Estimate:
    """Returns the share count / total of independent trials.

    The standard error is that of the Beta distribution a uniform prior leads to, sqrt(p (1 - p) / (total + 3)) at
    p = (count + 1) / (total + 2): near the binomial one, but not 0 where count is 0 or total.

    Args:
        count: number of trials that succeeded.
        total: number of trials.
    """
    p = (count + 1) / (total + 2)
    return Estimate(count / total, (p * (1 - p) / (total + 3)) ** 0.5, 0.0, 1.0)
