"""The operations of a quantized program that stay in floats: the most sensitive ones, and no more than it takes."""

from collections.abc import Callable, Sequence


def most_sensitive(
    names: Sequence[str], error: Callable[[list[str]], float], on_done: Callable[[int, int], None]
) -> list[str]:
    """Returns operations by the error that each makes alone, the largest first.

    Args:
        names: operations that can be in int8.
        error: function that returns the error of the program with some operations in floats.
        on_done: receives the number of operations tried, and of all.
    """
    errors: dict[str, float] = {}
    for i, name in enumerate(names):
        errors[name] = error([other for other in names if other != name])
        on_done(i + 1, len(names))
    return sorted(names, key=errors.__getitem__, reverse=True)


def fewest(names: Sequence[str], enough: Callable[[Sequence[str]], bool]) -> int:
    """Returns the least number of operations, from the first on, that must stay in floats; all of them at the most.

    Args:
        names: operations, the most sensitive first.
        enough: function that returns whether the program agrees as asked with some operations in floats.
    """
    low, high = 0, len(names)
    while low < high:  # the agreement grows with the number, up to rounding
        middle = (low + high) // 2
        low, high = (low, middle) if enough(names[:middle]) else (middle + 1, high)
    return low
