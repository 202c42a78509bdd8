"""Files of named tensors: safetensors, or files of `torch.save`. Nothing in them is executed.

Files are mapped, not read, if possible: tensors stay in the file until they are used, in a private mapping, so that
writing to one changes the process' copy of the page and never the file.
"""

import argparse
import contextlib
import json
import logging
import mmap
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.formats.json_config import shown
from unistep.formats.torch_file import check_torch_file, is_training_state
from unistep.formats.wrappers import unwrap

# A name, a shape and a place take a hundred bytes; a tensor of them takes a kilobyte.
_MOST_HEADER_BYTES = 8_000_000
_LOG = logging.getLogger("unistep")
_PIECE = 1 << 26
_MAPPED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def map_state(path: Path, remedy: str) -> dict[str, Any]:
    """The state dict in a file, as it stands there.

    Args:
        path: safetensors file or file of `torch.save`, by its content; one that is neither is what its name says.
        remedy: remedy for a missing or wrong file, the end of a message.

    Raises:
        UserError: the file cannot be read, is damaged, holds objects, or is no state dict.
    """
    check_regular_file(path, remedy)
    is_safetensors = _is_safetensors(path)
    try:
        if is_safetensors:
            state = _map_safetensors(path)
        else:
            # The arguments of a script, which many put beside the weights, are plain data.
            plain = ("argparse", "Namespace") in check_torch_file(path)
            allowed = torch.serialization.safe_globals([argparse.Namespace]) if plain else contextlib.nullcontext()
            with allowed, path.open("rb") as file:
                # Only zip files, which torch writes since 1.6, can be mapped instead of read; and only by their path,
                # by whose ending torch goes.
                mapped = path.suffix != ".safetensors" and zipfile.is_zipfile(path)
                state = torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except Exception as error:  # damaged bytes make the readers raise almost anything
        if is_safetensors:
            raise UserError(f"{path} cannot be read ({_first_line(error)})", remedy) from None
        if is_training_state(path):
            raise UserError(
                f"{path} is a training state of EDM's or ECT's code, whose objects are not loaded; give the "
                "network-snapshot-*.pkl beside it"
            ) from None
        raise UserError(
            f"{path} is not a PyTorch file of tensors alone: it is damaged, or holds objects, which are not loaded",
            remedy,
        ) from None
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise UserError(f"{path} holds no state dict", remedy)
    return state


def _map_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in mappings of pieces of it.

    A piece leaves the process' memory with the last of its tensors: weights that are converted one by one are in memory
    once, not twice.

    Raises:
        SafetensorError: the file is damaged.
        UserError: its header is too long.
    """
    header = _header(path)
    with safe_open(path, "pt"):
        pass  # checks the header: every tensor has its place within the file, and none another's
    entries = json.loads(header)
    begin = 8 + len(header)
    places = []
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        dtype, (first, last) = _MAPPED.get(entry["dtype"]), entry["data_offsets"]
        if dtype is None or first == last or (begin + first) % dtype.itemsize:
            return load_file(path)  # what the library reads and a mapping does not
        places.append((begin + first, begin + last, name, dtype, entry["shape"]))
    state: dict[str, Tensor] = {}
    with path.open("rb") as file:
        for piece in _pieces(sorted(places)):
            # Whole pages, of which the first begins before the first tensor.
            start = piece[0][0] // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            length = piece[-1][1] - start
            content = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start)
            for first, last, name, dtype, shape in piece:
                count = (last - first) // dtype.itemsize
                state[name] = torch.frombuffer(content, dtype=dtype, count=count, offset=first - start).view(shape)
    return {name: state[name] for name in entries if name in state}


def _pieces(places: list[tuple]) -> Iterator[list[tuple]]:
    """Neighbours in a file, as many as have the size of a piece."""
    piece: list[tuple] = []
    for place in places:
        if piece and place[1] - piece[0][0] > _PIECE:
            yield piece
            piece = []
        piece.append(place)
    if piece:
        yield piece


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        return True
    return path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80"))


def names_in_safetensors(path: Path) -> list[str]:
    """The names of the tensors in a safetensors file; none where it is none, or is damaged."""
    try:
        header = json.loads(_header(path))
    except (OSError, ValueError, RecursionError):
        return []
    return [name for name in header if name != "__metadata__"] if isinstance(header, dict) else []


def _header(path: Path) -> bytes:
    """The names and places at the beginning of a safetensors file.

    Raises:
        UserError: they are more than makes sense.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # A larger number is that of another kind of file, whose reader refuses it.
        if _MOST_HEADER_BYTES < length < path.stat().st_size:
            raise UserError(
                f"{path}: its header has {length:,} bytes, more than the {_MOST_HEADER_BYTES:,} that make sense"
            )
        return file.read(min(length, _MOST_HEADER_BYTES))


def checked_tensors(state: Mapping[str, Any], path: Path, remedy: str) -> dict[str, Tensor]:
    """The entries of a state dict, which must be dense tensors of floats that the file has room for.

    Args:
        state: entries by name.
        path: file that they come from.
        remedy: remedy for a wrong file, the end of a message.

    Raises:
        UserError: an entry is something else; names it.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if wrong := _not_dense(tensor):
            raise UserError(f"{path}: its entry {tensor_name(name)} ({wrong}) is no dense tensor of floats", remedy)
        found[name] = tensor.detach()
    # A few bytes can pose as a tensor of any size, which converting it would make of it.
    if sum(tensor.numel() * tensor.element_size() for tensor in found.values()) > path.stat().st_size:
        raise UserError(f"{path}: its tensors claim more bytes than the file has", remedy)
    return found


def read_tensors(
    path: Path, names: Sequence[str] | None, remedy: str, *, layouts: Sequence[Collection[str]] = ()
) -> dict[str, Tensor]:
    """Tensors of a file as fp32, with memory of their own; what the tensors are wrapped in is taken off and logged.

    Args:
        path: file; safetensors if it ends so, otherwise a file of `torch.save`.
        names: names of the tensors; others in the file are left out. None is all.
        remedy: remedy for a missing or wrong file, the end of a message.
        layouts: names of tensors by which the network is recognised, where there are no `names`; see `unwrap`.

    Raises:
        UserError: the file cannot be read, is damaged, holds objects, lacks a name, or has values that are not finite.
    """
    state = map_state(path, remedy)
    if found := unwrap(state, layouts if names is None else [names], path):
        state = found.tensors
        if found.note:
            _LOG.info(found.note)
    wanted = list(state if names is None else names)
    for name in wanted:
        if name not in state:
            raise UserError(f"{path} lacks tensor {name}", remedy)
    found = checked_tensors({name: state[name] for name in wanted}, path, remedy)
    found = {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in found.items()}
    if (bad := not_finite(found)) is not None:
        raise UserError(f"{path}: tensor {tensor_name(bad)} has values that are not finite", remedy)
    return found


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that holds NaN or infinite numbers; None if all are finite."""
    # A sum takes as long as reading the numbers, asking for each of them ten times that. A sum that overflows proves
    # nothing; then each number is asked.
    sums = [tensor.sum(dtype=torch.float32) for tensor in state.values()]
    finite = torch.stack(sums).isfinite().tolist() if sums else []
    suspects = (name for name, ok in zip(state, finite, strict=True) if not ok)
    return next((name for name in suspects if not state[name].isfinite().all()), None)


def main_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The dtype of most numbers."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.numel()
    return counts.most_common(1)[0][0]


def tensor_name(name: str) -> str:
    """The name of a tensor as a piece of one line."""
    return name if name.isprintable() and len(name) <= 100 else shown(name)


def _not_dense(value: object) -> str:
    """Returns the property that keeps a value from being a dense tensor of floats; empty if it is one."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    for kind, usual in ((value.dtype, _FLOATS), (value.layout, (torch.strided,)), (value.device.type, ("cpu",))):
        if kind not in usual:
            return str(kind)
    return ""


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
