"""Tensors of a checkpoint that several processes have written, each its own part of them.

    checkpoints/step-00000500.pt                     the state, and the SHA-256 digests of the files beside it
    checkpoints/step-00000500.parts/*.safetensors    a file of each process

The files are those of `torch.distributed.checkpoint`, whose reader puts together what any number of processes wrote for
any other. They are safetensors: its usual files have an index that is a pickle. In the state, `{"in parts": name}`
stands for a tensor; a state without digests has none.
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


def put_in(state: Any, path: Path, own: Any = None) -> Any:
    """A state with its tensors, of which each process reads what it needs.

    Args:
        state: state, or a part of one, in whose place of tensors stand their names.
        path: checkpoint that it is of.
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

    # The reader needs the whole path: it takes its names for those below the folder that it is in.
    reader = HuggingFaceStorageReader(str(parts_folder(path).resolve()))
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


def empty_parts(path: Path) -> Path:
    """The folder beside a checkpoint that is to be written, made and without files.

    Args:
        path: the checkpoint.
    """
    folder = parts_folder(path)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        folder.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
    sync_folder(folder.parent)
    return folder


def remove_parts(path: Path) -> None:
    """Removes the files beside a checkpoint that is gone, or has its tensors in itself.

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
