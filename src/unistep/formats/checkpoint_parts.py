"""Tensors of a checkpoint that several processes have written, each its own part of them.

    checkpoints/step-00000500.pt                     the state, and the SHA-256 digests of the files beside it
    checkpoints/step-00000500.parts/0/*.safetensors  a file of each process

The files are those of `torch.distributed.checkpoint`, whose reader puts together what any number of processes wrote for
any other. They are safetensors: its usual files have an index that is a pickle. In the state, `{"in parts": name}`
stands for a tensor; a state without digests has none. A checkpoint that is written once more has its files in the next
folder (1, 2, ...), so that the former ones are whole until it is.
"""

import contextlib
import hashlib
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unistep.files import check_regular_file, sync_folder
from unistep.formats.checkpoint_names import parts_folder

DIGESTS = "parts"
"""Name of the digests in a state, by name of the file."""

_MARK = "in parts"
_FOLDER = re.compile(r"step-\d{8}\.parts")
_CHUNK = 1 << 22


def take_out(state: Any, chosen: Callable[[Tensor], bool], found: dict[str, Tensor], place: str = "") -> Any:
    """A state in whose place of some tensors stand their names.

    Args:
        state: mappings and lists of tensors and other values.
        chosen: whether a tensor is taken out.
        found: mapping that those taken out are added to, by name.
        place: name of the state itself.
    """
    if isinstance(state, Tensor) and chosen(state):
        found[place] = state
        return {_MARK: place}
    if isinstance(state, Mapping):
        return {key: take_out(value, chosen, found, f"{place}/{key}") for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(take_out(value, chosen, found, f"{place}/{i}") for i, value in enumerate(state))
    return state


def put_in(state: Any, folder: Path, own: Any = None) -> Any:
    """A state with its tensors, of which each process reads what it needs.

    Args:
        state: state, or a part of one, in whose place of tensors stand their names.
        folder: folder of the files, as `place_of` finds it.
        own: state that is as deep, with tensors that are parted as wanted; what it lacks is read whole.

    Raises:
        Exception: a file is not as it was written.
    """
    wanted: dict[str, Any] = {}
    _find(state, own, wanted)
    if not wanted:
        return state
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    known = reader.read_metadata().state_dict_metadata
    for name, like in wanted.items():
        row: Any = known[name]
        fits = isinstance(like, Tensor) and like.shape == row.size
        wanted[name] = torch.empty_like(like) if fits else torch.empty(row.size, dtype=row.properties.dtype)
    with warnings.catch_warnings():  # that it reads without the other processes, as it is asked to
        warnings.simplefilter("ignore")
        load(wanted, storage_reader=reader, no_dist=True)
    return _filled(state, wanted)


def file_digest(path: Path) -> str:
    """The SHA-256 digest of a file, as hexadecimal digits.

    Args:
        path: the file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()


def damage_of_parts(path: Path, digests: Mapping[str, str]) -> str:
    """The damage of the files beside a checkpoint, in words; empty where they are what was written.

    Args:
        path: the checkpoint.
        digests: their digests.
    """
    for name, expected in digests.items():
        file = parts_folder(path) / name
        try:
            check_regular_file(file, "")
            if file_digest(file) != expected:
                return f"the content of {file} is not that of its digest"
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return f"{file}: {reason}".removesuffix("; ")
    return ""


def place_of(path: Path, digests: Mapping[str, str]) -> Path:
    """The folder of the files that belong to a checkpoint.

    Args:
        path: the checkpoint.
        digests: their digests.
    """
    return (parts_folder(path) / next(iter(digests), "")).parent


def new_place(path: Path) -> Path:
    """A new folder for the files of a checkpoint that is to be written, beside those that are there.

    Args:
        path: the checkpoint.
    """
    folder = parts_folder(path)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(one.name) for one in folder.iterdir() if one.name.isdecimal()), default=-1)
    place = folder / str(number)
    place.mkdir()
    sync_folder(folder)
    sync_folder(folder.parent)
    return place


def trim_parts(path: Path, digests: Mapping[str, str]) -> None:
    """Removes the files beside a checkpoint that do not belong to it.

    Args:
        path: the checkpoint.
        digests: digests of those that do.
    """
    folder, kept = parts_folder(path), place_of(path, digests)
    for one in folder.iterdir() if digests and folder.is_dir() else ():
        if one != kept:
            shutil.rmtree(one, ignore_errors=True) if one.is_dir() else one.unlink(missing_ok=True)
    if not digests:
        remove_parts(path)


def remove_parts(path: Path) -> None:
    """Removes the files beside a checkpoint that is gone.

    Args:
        path: the checkpoint.
    """
    with contextlib.suppress(OSError):
        shutil.rmtree(parts_folder(path))


def clean_parts(folder: Path) -> None:
    """Removes the files that no checkpoint is beside: of one that was half-written, or is gone.

    Args:
        folder: folder of the checkpoints.
    """
    for parts in folder.iterdir():
        path = parts.with_suffix(".pt")
        if _FOLDER.fullmatch(parts.name) and not path.exists() and not path.with_suffix(".damaged").exists():
            remove_parts(path)


def _is_mark(state: Any) -> bool:
    return isinstance(state, Mapping) and state.keys() == {_MARK}


def _find(state: Any, own: Any, wanted: dict[str, Any]) -> None:
    if _is_mark(state):
        wanted[state[_MARK]] = own
    elif isinstance(state, Mapping):
        for key, value in state.items():
            _find(value, own.get(key) if isinstance(own, Mapping) else None, wanted)
    elif isinstance(state, list | tuple):
        for i, value in enumerate(state):
            _find(value, own[i] if isinstance(own, list | tuple) and i < len(own) else None, wanted)


def _filled(state: Any, found: Mapping[str, Tensor]) -> Any:
    if _is_mark(state):
        return found[state[_MARK]]
    if isinstance(state, Mapping):
        return {key: _filled(value, found) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_filled(value, found) for value in state)
    return state
