"""The precision of a pipeline's network, by all the names that it has."""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from unistep.errors import UserError
from unistep.pipelines.unet import UNet2D
from unistep.prepared.network import PreparedNetwork
from unistep.runtime.precision import SMALL, resolve_dtype, set_precision, short_name, size_of

_log = logging.getLogger("unistep")
_DTYPES = ("auto", "fp32", "fp16", "bf16", "float32", "float16", "bfloat16")


def as_precision(dtype: Any, field: str = "dtype") -> Any:
    """Returns a precision in the form that `resolve_dtype` takes.

    Args:
        dtype: torch dtype or its name, with or without "torch."; or a dict of them by the names of parts, of which that
            of `unet` is taken, else the "default", else fp32.
        field: name of the parameter.

    Raises:
        UserError: it is neither.
    """
    if isinstance(dtype, Mapping):
        if others := [str(name) for name in dtype if name not in ("unet", "scheduler", "default")]:
            _log.warning("`%s`: a consistency model has no part %s", field, ", ".join(others))
        dtype = dtype.get("unet", dtype.get("default", torch.float32))
    if isinstance(dtype, str):
        dtype = dtype.removeprefix("torch.")
        if dtype not in _DTYPES:
            raise UserError(f"`{field}` {dtype!r} is no precision; give one of {', '.join(_DTYPES)}")
        return dtype
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"`{field}` {dtype!r} is no precision; give a torch dtype, or one of {', '.join(_DTYPES)}")
    return dtype


def is_precision(value: object) -> bool:
    """Returns whether a value is a torch dtype or the name of a precision."""
    return isinstance(value, torch.dtype) or (isinstance(value, str) and value.removeprefix("torch.") in _DTYPES)


def resolved(dtype: Any, device: torch.device, unet: nn.Module) -> torch.dtype:
    """Returns the precision that a value means for a network on a device; the choice of "auto" is logged.

    Raises:
        UserError: no such precision.
    """
    chosen, why = resolve_dtype(as_precision(dtype), device, size_of(unet))
    if dtype == "auto":
        _log.warning("dtype auto: %s", why)
    return chosen


def suggest_auto(device: torch.device, unet: nn.Module) -> None:
    """Logs what "auto" would give where that is faster than the fp32 that was not asked for; once in a process."""
    if size_of(unet) >= SMALL:
        _suggest(device.type)


@functools.cache
def _suggest(kind: str) -> None:
    chosen, _ = resolve_dtype("auto", kind)
    if chosen != torch.float32:
        name = str(chosen).removeprefix("torch.")
        _log.warning('the network computes in float32, as in diffusers; `dtype="auto"` takes %s here, faster', name)


@functools.cache
def warn_of_fp16() -> None:
    """Logs that fp16 is slow on a CPU; once in a process."""
    fast = str(resolve_dtype("auto", "cpu")[0]).removeprefix("torch.")
    _log.warning('float16 is slow on a CPU; `dtype="%s"` is fast', fast)


def cast(unet: nn.Module, dtype: torch.dtype) -> None:
    """Sets the precision of a network: that of the blocks for one of this package's, of all for others.

    One that another runtime computes keeps its precision, which is logged where it differs.
    """
    if isinstance(unet, PreparedNetwork):
        if unet.precision not in ("int8", short_name(dtype)):
            _log.warning(
                "the network stays in %s, as `runtime` %s was opened; give `dtype` there", unet.precision, unet.runtime
            )
        return
    network = unet.network if isinstance(unet, UNet2D) else unet
    if hasattr(network, "cast_blocks"):
        set_precision(network, dtype)
    else:
        unet.to(dtype)
