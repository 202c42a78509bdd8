"""Checkpoints: one file a step, whole or absent.

A file is written under a temporary name, flushed to disk and renamed, so that a killed run leaves either the
former checkpoints or the new one. Files hold tensors and plain numbers and are read without executing anything.
"""

import os
import re
from pathlib import Path
from typing import Any

import torch

from unistep.errors import UserError

_NETWORK = "network."  # in the names of the weights of a `Preconditioned` network
_NAME = re.compile(r"step-(\d{8})\.pt")


def checkpoint_steps(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in `folder`, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)))


def checkpoint_path(folder: Path, step: int) -> Path:
    """Returns the path of the checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.pt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint and removes all but the newest ones.

    Args:
        folder: folder of the checkpoints, created if it is missing.
        step: number of optimizer steps done.
        state: tensors and plain numbers.
        keep: number of checkpoints that stay, at least one.

    Returns:
        Path of the checkpoint.

    Raises:
        UserError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, step)
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write checkpoint {path}: {error.strerror or error}; free the disk and resume"
        ) from None
    for old in checkpoint_steps(folder)[: -max(keep, 1)]:
        checkpoint_path(folder, old).unlink()
    return path


def load_average(path: Path) -> dict[str, torch.Tensor]:
    """The first average of the network's weights in a checkpoint, on the CPU.

    Args:
        path: the checkpoint.

    Raises:
        UserError: the file is damaged.
    """
    try:
        averages = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["ema"]
        average = next(iter(averages.values()))
        # Copies: the file may be removed, and most of it is not needed.
        return {
            name.removeprefix(_NETWORK): value.clone() for name, value in average.items() if name.startswith(_NETWORK)
        }
    except Exception as error:
        raise UserError(f"checkpoint {path} cannot be read ({_reason(error)}); take another") from None


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Reads the newest checkpoint.

    Args:
        folder: folder of the checkpoints.
        device: device of the tensors.

    Returns:
        State of the newest checkpoint; None if there is none.

    Raises:
        UserError: the file is damaged (a full disk, a copy that broke off).
    """
    steps = checkpoint_steps(folder)
    if not steps:
        return None
    path = checkpoint_path(folder, steps[-1])
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({_reason(error)}); delete it to resume from the one before"
        ) from None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
