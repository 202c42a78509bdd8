"""A file of named tensors that is no model folder: safetensors, or what `torch.save` writes. Nothing in it is run."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.formats.json_config import shown

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_tensors(path: Path, names: Iterable[str] | None, remedy: str) -> dict[str, Tensor]:
    """The tensors of these names as fp32, with memory of their own.

    Args:
        path: ends with .safetensors, or is taken for a file of PyTorch.
        names: which; others in the file are left out. None is all, which then must be tensors.
        remedy: what to do about a file that is missing or wrong, the end of the messages.

    Raises:
        UserError: it cannot be read, is damaged, holds objects, lacks a name, or its values are no finite numbers.
    """
    check_regular_file(path, remedy)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            # Only zip files, which torch writes since 2020, can be mapped instead of read.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception:  # damaged bytes make the readers raise almost anything
        raise UserError(
            f"{path} is not a file of tensors alone: it is damaged, or holds objects, which are not loaded; {remedy}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path} holds no state dict; {remedy}")
    found: dict[str, Tensor] = {}
    for name in state if names is None else names:
        tensor = state.get(name)
        if tensor is None:
            raise UserError(f"{path} lacks tensor {name}; {remedy}")
        if (
            not isinstance(tensor, Tensor)
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or tensor.dtype not in _FLOATS
        ):
            raise UserError(f"{path}: its entry {tensor_name(name)} is no dense tensor of floats; {remedy}")
        found[name] = tensor.detach()
    # A few bytes can pose as a tensor of any size, which converting it would make of it.
    if sum(tensor.numel() * tensor.element_size() for tensor in found.values()) > path.stat().st_size:
        raise UserError(f"{path}: its tensors claim more bytes than the file has; {remedy}")
    found = {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in found.items()}
    for name, tensor in found.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: tensor {tensor_name(name)} has values that are not finite; {remedy}")
    return found


def tensor_name(name: str) -> str:
    """The name of a tensor as a piece of one line, whatever the file calls it."""
    return name if name.isprintable() and len(name) <= 100 else shown(name)
