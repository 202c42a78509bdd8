"""The network of a pipeline in another runtime than PyTorch's."""

import os
from typing import Any

import torch
from torch import nn

from unistep.errors import UserError
from unistep.formats.model import LoadedModel
from unistep.prepared.network import PreparedNetwork
from unistep.prepared.table import RUNTIMES, find_runtime
from unistep.runtime.precision import resolve_dtype, short_name, size_of


def in_runtime(
    name: str | os.PathLike[str], options: dict[str, Any], runtime: str, precision: Any, place: torch.device
) -> LoadedModel | None:
    """Opens a model in a runtime, for which it is prepared once; None where eager is the choice.

    Args:
        name: name of the model, as `open_model` takes it.
        options: options of `open_model`.
        runtime: name of a runtime, or auto.
        precision: torch dtype, its name, or "auto".
        place: device of the model.

    Raises:
        UserError: there is no such model, no such runtime, or it is not installed, not for the device or not for the
            precision.
    """
    if runtime in ("eager", "compiled"):
        find_runtime(runtime)
        return None
    from unistep.formats.open import open_model
    from unistep.generation.prepare import prepared_model

    outline = open_model(name, "meta", **options)
    dtype, _ = resolve_dtype(precision, place, size_of(outline.denoiser.network))
    row = RUNTIMES.get(runtime)
    if precision == "auto" and row is not None and short_name(dtype) not in row.precisions:
        dtype = torch.float32
    model, _ = prepared_model(
        name, options, lambda device: open_model(name, device, **options), runtime, short_name(dtype), device=place
    )
    return model


def compiled(unet: nn.Module) -> Any:
    """Returns a network of the same weights that `torch.compile` compiles when it is called first."""
    return torch.compile(unet, dynamic=False)


def check_place(unet: nn.Module, device: torch.device) -> None:
    """Passes where a network can be moved to a device.

    Raises:
        UserError: another runtime computes it, on the CPU.
    """
    if isinstance(unet, PreparedNetwork) and device.type != "cpu":
        raise UserError(f"`runtime` {unet.runtime} is for the CPU", f"open the model with `runtime` eager on {device}")


def check_has_weights(unet: nn.Module) -> None:
    """Passes where the weights of a network can be written.

    Raises:
        UserError: another runtime computes it, and has its weights.
    """
    if isinstance(unet, PreparedNetwork):
        raise UserError(
            f"`runtime` {unet.runtime} has the weights, in a form of its own", "save the model that it was opened from"
        )
