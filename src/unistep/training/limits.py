"""Times after which a process of a training ends by itself."""

import signal
from dataclasses import dataclass

from unistep.checks import check_range
from unistep.runtime.stalls import Watch

_TEN_YEARS = 10 * 365 * 86400.0


@dataclass(frozen=True)
class Limits:
    """Times in seconds.

    Args:
        grace_seconds: time between a signal and the end, whatever is under way then; None is any.
        stall_seconds: longest time of a step with all that follows it; None is any.

    Raises:
        UserError: a time is out of range.
    """

    grace_seconds: float | None = None
    stall_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("grace_seconds", "stall_seconds"):
            check_range(name, getattr(self, name), 0.1, _TEN_YEARS)

    def announce(self, watch: Watch, heard: signal.Signals) -> None:
        """Sets the end of the process after a signal.

        Args:
            watch: watch of the process.
            heard: the signal.
        """
        if self.grace_seconds is not None:
            reason = f"has not stopped {self.grace_seconds:g} s after {heard.name}"
            watch.end_in(self.grace_seconds, reason, 128 + heard.value)


NO_LIMITS = Limits()
