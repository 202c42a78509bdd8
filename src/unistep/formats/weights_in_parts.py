"""Named tensors as safetensors in parts of limited size, with an index: weights that travel where files must be small.

    index.json                  {"format": "unistep weights", "version": 1, ..., "parts": [...], "tensors": {...}}
    weights-1.safetensors ...   the tensors in the order of the index, as many to a part as it has room for

A part has its size and the SHA-256 digest of its content in the index, a tensor its shape and the numbers of its parts,
from 0. One that does not fit into the rest of a part is cut: its pieces are flat, under its name, in those parts.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from unistep.documents import read_json
from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.formats.tensor_file import checked_tensors, map_state, not_finite, tensor_name

INDEX = "index.json"
_FORMAT = {"format": "unistep weights", "version": 1}

_REMEDY = "copy the whole folder again"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors")
_MOST_BYTES, _MOST_PARTS, _MOST_TENSORS = 32_000_000, 10_000, 200_000
_LEAST_PIECE = 4096  # bytes of a tensor's first piece, or it begins in the next part
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Part:
    """A file.

    Args:
        file: its name.
        bytes: its size.
        sha256: digest of its content.
    """

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """Index of tensors in parts.

    Args:
        facts: entries of the index beside those of tensors and parts.
        parts: the files.
        shapes: shape of each tensor by name.
        places: numbers of the parts that each tensor is in, by name.
        sha256: digest of the index.
    """

    facts: Mapping[str, Any]
    parts: Sequence[Part]
    shapes: Mapping[str, tuple[int, ...]]
    places: Mapping[str, Sequence[int]]
    sha256: str


def write_in_parts(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], most_bytes: int) -> Index:
    """Writes tensors, with the index last.

    Args:
        folder: folder of the files, which exists.
        tensors: tensors by name.
        facts: more entries for the index, in JSON's types.
        most_bytes: size of the largest part, 20,000 or more.

    Raises:
        UserError: a tensor has values that are not finite.
        OSError: a file cannot be written.
    """
    if (bad := not_finite(tensors)) is not None:
        raise UserError(f"{folder}: tensor {bad} has values that are not finite; it was not written")
    parts: list[Part] = []
    places: dict[str, list[int]] = {name: [] for name in tensors}
    held: dict[str, Tensor] = {}
    room = most_bytes

    def close() -> None:
        nonlocal room
        content = save(held, {"format": "pt"})
        file = f"weights-{len(parts) + 1}.safetensors"
        (folder / file).write_bytes(content)
        parts.append(Part(file, len(content), hashlib.sha256(content).hexdigest()))
        held.clear()
        room = most_bytes

    for name, tensor in tensors.items():
        flat, done, size = tensor.detach().to("cpu").contiguous().reshape(-1), 0, tensor.element_size()
        about = 200 + 6 * len(name)  # bytes of its entry in the header, and of the alignment
        while done < len(flat) or not places[name]:
            left = (len(flat) - done) * size
            if held and min(left, _LEAST_PIECE) > room - about:
                close()
            count = min(len(flat) - done, (room - about) // size)
            piece = flat[done : done + count]
            held[name] = piece.reshape(tensor.shape) if count == tensor.numel() else piece.clone()
            places[name].append(len(parts))
            room, done = room - about - count * size, done + count
    close()
    index = {
        **_FORMAT,
        **facts,
        "parts": [{"file": part.file, "bytes": part.bytes, "sha256": part.sha256} for part in parts],
        "tensors": {name: {"shape": list(t.shape), "parts": places[name]} for name, t in tensors.items()},
    }
    (folder / INDEX).write_text(json.dumps(index) + "\n", encoding="utf-8")
    return read_index(folder)


def read_index(folder: Path) -> Index:
    """Reads the index of tensors in parts.

    Args:
        folder: their folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / INDEX
    raw = read_json(path, f"give a folder that was exported: {_REMEDY}", most_bytes=_MOST_BYTES)
    if not isinstance(raw, dict) or any(raw.get(name) != value for name, value in _FORMAT.items()):
        raise UserError(f"{path} is no index of weights in parts of version {_FORMAT['version']}", _REMEDY)
    parts, tensors = raw.pop("parts", None), raw.pop("tensors", None)
    if not isinstance(parts, list) or not 0 < len(parts) <= _MOST_PARTS:
        raise UserError(f"{path}: its parts are no list", _REMEDY)
    if not isinstance(tensors, dict) or len(tensors) > _MOST_TENSORS:
        raise UserError(f"{path}: its tensors are no mapping", _REMEDY)
    for number, part in enumerate(parts):
        if not _is_part(part):
            raise UserError(f"{path}: its part {number} is no name, size and digest of a file", _REMEDY)
    if len({part["file"] for part in parts}) < len(parts):
        raise UserError(f"{path}: two of its parts have one name", _REMEDY)
    for name, entry in tensors.items():
        if not _is_tensor(entry, len(parts)):
            raise UserError(f"{path}: its entry {tensor_name(name)} is no shape and parts of a tensor", _REMEDY)
    return Index(
        raw,
        [Part(**part) for part in parts],
        {name: tuple(entry["shape"]) for name, entry in tensors.items()},
        {name: entry["parts"] for name, entry in tensors.items()},
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def read_parts(folder: Path, index: Index) -> dict[str, Tensor]:
    """Reads all tensors, as fp32.

    Args:
        folder: folder of the parts.
        index: their index.

    Raises:
        UserError: a part is missing or damaged, or does not hold what the index tells.
    """
    if missing := [part.file for part in index.parts if not (folder / part.file).exists()]:
        raise UserError(f"{folder} lacks {', '.join(missing[:8])}{' ...' * (len(missing) > 8)}", _REMEDY)
    held = [_read_part(folder / part.file, part) for part in index.parts]
    found: dict[str, Tensor] = {}
    for name, shape in index.shapes.items():
        places = index.places[name]
        if any(name not in held[number] for number in places):
            raise UserError(f"{folder}: its parts lack tensor {tensor_name(name)}", _REMEDY)
        pieces = [held[number][name].reshape(-1) for number in places]
        if sum(map(len, pieces)) != prod(shape):
            raise UserError(f"{folder}: tensor {tensor_name(name)} is not of the shape in its index", _REMEDY)
        found[name] = torch.cat(pieces).to(torch.float32, copy=True).reshape(shape)
    if (bad := not_finite(found)) is not None:
        raise UserError(f"{folder}: tensor {tensor_name(bad)} has values that are not finite", _REMEDY)
    return found


def _read_part(path: Path, part: Part) -> dict[str, Tensor]:
    check_regular_file(path, _REMEDY)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})", _REMEDY) from None
    if digest.hexdigest() != part.sha256:
        raise UserError(f"{path} is not what was exported: its digest differs from that in {INDEX}", _REMEDY)
    return checked_tensors(map_state(path, _REMEDY), path, _REMEDY)


def _is_part(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"file", "bytes", "sha256"}:
        return False
    name, digest = value["file"], value["sha256"]
    names = isinstance(name, str) and _NAME.fullmatch(name) and isinstance(digest, str)
    return bool(names and re.fullmatch("[0-9a-f]{64}", digest)) and _is_count(value["bytes"])


def _is_tensor(value: Any, parts: int) -> bool:
    if not isinstance(value, dict) or value.keys() != {"shape", "parts"}:
        return False
    shape, places = value["shape"], value["parts"]
    if not isinstance(shape, list) or len(shape) > 8 or not isinstance(places, list) or not places:
        return False
    if not all(map(_is_count, [*shape, *places])) or places[-1] >= parts:
        return False
    return all(one < other for one, other in pairwise(places))  # no piece counts twice


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48
