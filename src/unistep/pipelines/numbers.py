"""Whole numbers and lists of numbers, whether of Python, numpy or torch, and devices: as the calls need them."""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from unistep.errors import UserError

Numbers = Tensor | np.ndarray | Sequence[Any]
"""A list of numbers as callers give it."""

Whole = SupportsIndex
"""A whole number as callers give it."""

Real = float | np.number
"""A number as callers give it."""


def is_whole(value: object) -> bool:
    """Returns whether a value is a whole number: of Python, numpy or torch, and neither a truth value nor an array."""
    if isinstance(value, bool | np.bool_ | str) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return False
    try:
        operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return False
    return getattr(value, "ndim", 0) == 0


def whole_number(field: str, value: Any, least: int = 1) -> int:
    """Returns a whole number as Python's.

    Args:
        field: name of the parameter.
        value: number as the caller gives it.
        least: smallest valid value.

    Raises:
        UserError: `value` is no whole number, or too small.
    """
    if not is_whole(value) or operator.index(value) < least:
        kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise UserError(f"`{field}` is {value!r}; it must be {kind}.")
    return operator.index(value)


def check_number(field: str, value: Any) -> None:
    """Refuses what is no finite number.

    Raises:
        UserError: `value` is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise UserError(f"`{field}` {value!r} must be a finite number")


def as_list(field: str, values: Any) -> list[Any]:
    """Returns a list of numbers as Python's.

    Args:
        field: name of the parameter.
        values: list, tuple, range, array or tensor.

    Raises:
        UserError: `values` are no such thing.
    """
    if isinstance(values, Tensor | np.ndarray):
        listed = values.tolist()
        if not isinstance(listed, list):
            raise UserError(f"`{field}` is {listed}; give a list of numbers, as [{listed}]")
        return listed
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise UserError(f"`{field}` is {values!r}; give a list of numbers")
    return [value.item() if isinstance(value, np.generic | Tensor) and value.ndim == 0 else value for value in values]


def as_device(value: Any, field: str = "device") -> torch.device:
    """Returns a device that this machine has.

    Args:
        value: device, its name or its number, as "cuda", "cuda:1" or 1.
        field: name of the parameter.

    Raises:
        UserError: there is no such device.
    """
    try:
        device = torch.device(value)
        if device.type == "meta":
            raise UserError(f"`{field}` meta holds no values; give one that this machine has")
        torch.empty(0, device=device)
    except UserError:
        raise
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"`{field}` {value}: {reason}; give one that this machine has") from None
    return device
