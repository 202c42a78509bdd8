"""A measured number and how far it can be trusted."""

from dataclasses import dataclass

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A value with the standard error of its sampling: what another draw of as many images would change it by.

    Args:
        value: the measure on the images at hand.
        standard_error: one standard deviation of `value` over draws of the images; not of any bias.
    """

    value: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval, value -+ 1.96 standard errors."""
        return self.value - _Z95 * self.standard_error, self.value + _Z95 * self.standard_error

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {_Z95 * self.standard_error:.2g}"
