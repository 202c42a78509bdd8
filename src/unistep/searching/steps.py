"""Numbers of steps that a search is made for."""

import re
from collections.abc import Sequence

from unistep.errors import UserError

_MOST_STEPS = 64


def steps_of(steps: int | Sequence[int] | str, least: int = 2) -> list[int]:
    """Returns numbers of steps, rising, each once.

    Args:
        steps: one number, several, or text as 2..8 or 2,4.
        least: smallest valid number.

    Raises:
        UserError: the text is nothing of these, there is no number, or one is out of range.
    """
    ranges = (
        _ranges(steps) if isinstance(steps, str) else [(n, n) for n in ([steps] if isinstance(steps, int) else steps)]
    )
    shown = steps if isinstance(steps, str) else ",".join(str(first) for first, _ in ranges)
    found: set[int] = set()
    for first, last in ranges:
        for number in (first, last):
            if not least <= number <= _MOST_STEPS:
                reason = "one step begins at sigma_max and has nothing to choose; " if number == 1 else ""
                raise UserError(f"`steps` {shown}: {reason}numbers of steps lie between {least} and {_MOST_STEPS}")
        if first > last:
            raise UserError(f"`steps` {shown}: the range {first}..{last} is empty; give {last}..{first}")
        found |= set(range(first, last + 1))
    if not found:
        raise UserError("`steps` is empty; give numbers of steps, as 2 or 2,4 or 2..8")
    return sorted(found)


def _ranges(text: str) -> list[tuple[int, int]]:
    """First and last of every range in a text."""
    ranges = []
    for part in text.strip("[] ").split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*\.\.\s*(\d{1,9}))?\s*", part)
        if match is None:
            raise UserError(f"`steps` {text or repr('')}: give numbers of steps, as 2 or 2,4 or 2..8")
        ranges.append((int(match[1]), int(match[2] or match[1])))
    return ranges
