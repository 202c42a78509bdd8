"""Checkpoints: one file a step, whole or absent, and aware of damage.

A file is written under a temporary name, flushed to disk and renamed, so that a killed run leaves either the
former checkpoints or the new one. Files hold tensors and plain numbers and are read without executing anything.

Behind the archive of PyTorch stands the SHA-256 digest of all before:

    step-00000500.pt = torch.save(state) + b"unistep sha256 " + 64 hexadecimal digits + b"\\n"

It is compared before anything is used. Files of before there were digests have none and are read as they are.
Tensors that several processes have written lie in files beside it (`checkpoint_parts`).
"""

import contextlib
import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from unistep.errors import UserError
from unistep.files import check_regular_file, is_full, sync_folder, write_error
from unistep.formats.checkpoint_names import checkpoint_path, checkpoint_steps, steps_by_name
from unistep.formats.checkpoint_parts import (
    DIGESTS,
    clean_parts,
    damage_of_parts,
    place_of,
    put_in,
    remove_parts,
    trim_parts,
)

_log = logging.getLogger("unistep")

_NETWORK = "network."  # in the names of the weights of a `Preconditioned` network
_LEFT = re.compile(r"step-\d{8}\.tmp")
_ASIDE = re.compile(r"step-(\d{8})\.damaged")
_MARK = b"unistep sha256 "
_TRAILER = len(_MARK) + 65
# In the state of every file with a digest: one that lacks its digest is damaged.
_SEALED = "sealed"
_CHUNK = 1 << 22


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be used, with the reason; or a folder in which none can be."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int, also: int | None = None) -> Path:
    """Writes a checkpoint and removes all but the newest ones.

    Args:
        folder: folder of the checkpoints, created if it is missing.
        step: number of optimizer steps done.
        state: tensors and plain numbers; with digests where files beside it, which are there already, have some.
        keep: number of checkpoints that stay, at least one.
        also: step of a checkpoint that stays too; None is none.

    Returns:
        Path of the checkpoint.

    Raises:
        UserError: it cannot be written.
    """
    path = checkpoint_path(folder, step)
    temporary = path.with_suffix(".tmp")
    file: _Digested | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_directory(path)
        file = _Digested(temporary)
        torch.save(state | {_SEALED: True}, cast(Any, file))
        file.seal()
        temporary.replace(path)
        sync_folder(folder)
    except BaseException as error:
        if file is not None:
            file.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        # PyTorch reports an error of the file as one of its own.
        cause = error if isinstance(error, OSError) else file.error if file is not None else None
        if cause is None:
            raise
        raise save_error(path, cause, _size(state)) from None
    trim_parts(path, state.get(DIGESTS, {}))
    for old in checkpoint_steps(folder)[: -max(keep, 1)]:
        if old != also:
            remove_checkpoint(checkpoint_path(folder, old))
    for old in steps_by_name(folder, _ASIDE):
        if old <= step:
            _remove(_aside(folder, old))
            if not checkpoint_path(folder, old).exists():
                remove_parts(checkpoint_path(folder, old))
    return path


def save_error(path: Path, error: OSError, need: int | None = None) -> UserError:
    """The error of a checkpoint that cannot be written.

    Args:
        path: the checkpoint.
        error: error of the system.
        need: number of bytes to be written; None where it is unknown.
    """
    return write_error(path, error, "resume" if is_full(error) else "make the place writable and resume", need=need)


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint, and the files beside it after it.

    Args:
        path: the checkpoint.
    """
    _remove(path)
    if not path.exists():
        remove_parts(path)


def clean(folder: Path) -> None:
    """Removes what a killed process left half-written among the checkpoints.

    Args:
        folder: folder of the checkpoints.
    """
    if folder.is_dir():
        for path in folder.iterdir():
            if _LEFT.fullmatch(path.name):
                _remove(path)
        clean_parts(folder)


def remove_after(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps than `step`."""
    for later in checkpoint_steps(folder):
        if later > step:
            remove_checkpoint(checkpoint_path(folder, later))


def set_aside(folder: Path, newest: Path) -> None:
    """Renames the checkpoints after the newest whole one to step-NNNNNNNN.damaged.

    They stay until the run has come to their step again.

    Args:
        folder: folder of the checkpoints.
        newest: the newest whole one.
    """
    for step in checkpoint_steps(folder):
        if (path := checkpoint_path(folder, step)).name > newest.name:
            with contextlib.suppress(OSError):
                path.replace(_aside(folder, step))


def load_average(path: Path, *, checked: bool = False) -> dict[str, torch.Tensor]:
    """The first average of the network's weights in a checkpoint, on the CPU.

    Args:
        path: the checkpoint.
        checked: whether the digest was compared before.

    Raises:
        UserError: the file is damaged.
    """
    if not checked:
        check_whole(path)
    state = read_checkpoint(path, mapped=True, checked=True, whole=False)
    try:
        averages = state["ema"]
        average = put_in(next(iter(averages.values())), place_of(path, state.get(DIGESTS, {})))
        # Copies: the file may be removed, and most of it is not needed.
        return {
            name.removeprefix(_NETWORK): value.clone() for name, value in average.items() if name.startswith(_NETWORK)
        }
    except Exception as error:
        raise _damaged(path, _reason(error)) from None


def whole_checkpoint(folder: Path, *, at_most: int | None = None) -> Path | None:
    """The newest checkpoint that is whole; every newer one is named in a warning.

    Args:
        folder: folder of the checkpoints.
        at_most: last step that is looked at; None is the newest.

    Returns:
        Its path; None where there are no checkpoints.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    damage: list[DamagedCheckpoint] = []
    for step in reversed(checkpoint_steps(folder)):
        if at_most is not None and step > at_most:
            continue
        path = checkpoint_path(folder, step)
        try:
            check_whole(path)
        except DamagedCheckpoint as error:
            damage.append(error)
            continue
        for error in damage:
            _log.warning("%s; taken instead: the checkpoint before, of step %d", error.problem, step)
        return path
    if damage:
        more = f", and the {len(damage) - 1} before it too" if len(damage) > 1 else ", and there is none before it"
        raise DamagedCheckpoint(
            f"{damage[0].problem}{more}",
            f"put a copy in its place, or remove {folder} to train the stage from its beginning",
        )
    return None


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Reads the newest checkpoint that is whole.

    Args:
        folder: folder of the checkpoints.

    Returns:
        State of the checkpoint; None if there is none.

    Raises:
        UserError: all checkpoints are damaged (a full disk, a copy that broke off).
    """
    path = whole_checkpoint(folder)
    return None if path is None else read_checkpoint(path, checked=True)


def read_checkpoint(path: Path, *, mapped: bool = False, checked: bool = False, whole: bool = True) -> dict[str, Any]:
    """Reads a checkpoint, to main memory.

    Args:
        path: the checkpoint.
        mapped: whether the tensors stay in the file until they are used.
        checked: whether the digests were compared before.
        whole: whether files beside it are read too; else names stand for their tensors.

    Raises:
        UserError: a file is damaged.
    """
    digest = _check_digest(path) if not checked else None
    if not zipfile.is_zipfile(path):  # a bare pickle takes torch as long as its maker likes
        raise _damaged(path, "it is no zip file, or is cut short")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        raise _damaged(path, _reason(error)) from None
    if not isinstance(state, dict):
        raise _damaged(path, "it holds no state")
    if not checked and digest is None and state.get(_SEALED):
        raise _damaged(path, "its digest is gone")
    if not whole:
        return state
    if not checked and (reason := damage_of_parts(path, state.get(DIGESTS, {}))):
        raise _damaged(path, reason)
    return filled(state, path)


def filled(state: dict[str, Any], path: Path, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A state with the tensors of the files beside its checkpoint.

    Args:
        state: state in which their names stand for them; one of another form stays as it is.
        path: the checkpoint.
        own: state of this process, with tensors that are parted as wanted; what it lacks is read whole.

    Raises:
        UserError: a file is damaged.
    """
    if DIGESTS not in state:
        return state
    try:
        place = place_of(path, state[DIGESTS])
        return put_in({name: value for name, value in state.items() if name != DIGESTS}, place, own)
    except Exception as error:
        raise _damaged(path, _reason(error)) from None


def check_whole(path: Path) -> None:
    """Passes where a checkpoint can be read and is what was written.

    Args:
        path: the checkpoint.

    Raises:
        UserError: it is damaged.
    """
    if _check_digest(path) is None:
        read_checkpoint(path)
        _log.info("%s has no digest, as those of former versions: damage in its numbers would not be noticed", path)
        return
    state = read_checkpoint(path, mapped=True, checked=True, whole=False)
    if reason := damage_of_parts(path, state.get(DIGESTS, {})):
        raise _damaged(path, reason)


class _Digested:
    """A file that is written once, from its beginning to its end, with the digest of its content behind it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._file = path.open("wb")
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Writes bytes; PyTorch calls it."""
        try:
            self._digest.update(data)
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Does nothing: `seal` flushes."""

    def seal(self) -> None:
        """Writes the digest, and brings all to the disk."""
        self._file.write(_MARK + self._digest.hexdigest().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Closes the file after an error, whatever becomes of what was not yet written."""
        with contextlib.suppress(OSError):
            self._file.close()


def _check_digest(path: Path) -> str | None:
    """Compares a file with its digest, and returns the digest; None where it has none.

    Raises:
        DamagedCheckpoint: they differ, or there is no such file.
    """
    try:
        check_regular_file(path, "")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TRAILER))
            match = re.fullmatch(re.escape(_MARK) + rb"([0-9a-f]{64})\n", file.read(_TRAILER))
            if match is None:
                return None
            file.seek(0)
            digest, left = hashlib.sha256(), size - _TRAILER
            while left and (part := file.read(min(left, _CHUNK))):
                digest.update(part)
                left -= len(part)
    except UserError as error:
        raise _damaged(path, str(error).removeprefix(f"{path} ").removesuffix("; ")) from None
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    if digest.hexdigest() != (expected := match[1].decode()):
        raise _damaged(path, "its content is not that of its digest")
    return expected


def _damaged(path: Path, reason: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"checkpoint {path} cannot be read ({reason})", "take another")


def _aside(folder: Path, step: int) -> Path:
    return checkpoint_path(folder, step).with_suffix(".damaged")


def _remove(path: Path) -> None:
    """Removes a file; a folder of its name only where it is empty, as nothing of ours is in it."""
    with contextlib.suppress(OSError):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def _clear_directory(path: Path) -> None:
    """Makes room for a file where a folder has its name."""
    if path.is_dir() and not path.is_symlink():
        path.replace(path.with_suffix(".damaged"))


def _size(state: Any) -> int:
    """Bytes of the tensors in a state."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(_size, values))


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
