"""Snapshots: averages of the weights in training, from which averages of other lengths are made.

    STAGE/snapshots/step-NNNNNNNN.safetensors     LENGTH/NAME for each average and parameter, as fp16
    its metadata                                  step, and `begun`, the step that the averages began at

A snapshot is whole or absent, and holds digests of its tensors.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unistep.errors import UserError
from unistep.files import check_regular_file, whole_file, write_error
from unistep.formats.model_folder.weights import check_digest, save_tensors
from unistep.formats.tensor_file import checked_tensors, map_state

FOLDER = "snapshots"
"""Name of their folder, below that of the stage."""

_NAME = re.compile(r"step-(\d{8})\.safetensors")
_REMEDY = "remove it; the others are enough"


@dataclass(frozen=True)
class Snapshot:
    """A file of averages.

    Args:
        path: file.
        step: number of steps done.
        begun: step that the averages began at.
        lengths: relative lengths of the averages, as text.
    """

    path: Path
    step: int
    begun: int
    lengths: tuple[str, ...]

    def average(self, length: str) -> dict[str, Tensor]:
        """Returns the weights of one average, mapped from the file.

        Args:
            length: its relative length, of `lengths`.

        Raises:
            UserError: the file is damaged.
        """
        prefix = f"{length}/"
        state = map_state(self.path, _REMEDY)
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        return checked_tensors(own, self.path, _REMEDY)


def write_snapshot(folder: Path, step: int, begun: int, averages: Mapping[float, Mapping[str, Tensor]]) -> None:
    """Writes a snapshot.

    Args:
        folder: folder of the snapshots, made where it is missing.
        step: number of steps done.
        begun: step that the averages began at.
        averages: weights by length and name.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / f"step-{step:08d}.safetensors"
    state = {
        f"{length}/{name}": value.detach().to("cpu", torch.float16).contiguous()
        for length, average in averages.items()
        for name, value in average.items()
    }
    try:
        with whole_file(path) as temporary:
            save_tensors(state, temporary, {"step": str(step), "begun": str(begun)})
    except (OSError, SafetensorError) as error:
        cause = error if isinstance(error, OSError) else OSError(str(error))
        raise write_error(path, cause, "resume", need=sum(2 * value.numel() for value in state.values())) from None


def find_snapshots(folder: Path) -> list[Snapshot]:
    """Returns the snapshots of a stage in the order of their steps; their tensors are not read.

    Args:
        folder: folder of the snapshots.

    Raises:
        UserError: one is damaged, or no snapshot.
    """
    if not folder.is_dir():
        return []
    return [_opened(path) for path in sorted(folder.iterdir()) if _NAME.fullmatch(path.name)]


def check_snapshot(snapshot: Snapshot) -> None:
    """Passes where the tensors of a snapshot are those that were written.

    Raises:
        UserError: they are not.
    """
    try:
        check_digest(snapshot.path)
    except UserError as error:
        raise UserError(error.problem, _REMEDY) from None


def remove_snapshots_after(folder: Path, step: int) -> None:
    """Removes the snapshots of later steps than `step`, which a training that goes back makes again."""
    for path in folder.iterdir() if folder.is_dir() else ():
        found = _NAME.fullmatch(path.name)
        if found and int(found[1]) > step:
            with suppress(OSError):
                path.unlink()


def _opened(path: Path) -> Snapshot:
    check_regular_file(path, _REMEDY)
    try:
        with safe_open(path, "pt") as opened:
            facts, names = opened.metadata() or {}, [*opened.keys()]
        step, begun = int(facts["step"]), int(facts["begun"])
        lengths = tuple(dict.fromkeys(name.partition("/")[0] for name in names))
        if not 0 <= begun < step or not all(0 < float(length) < 1 for length in lengths):
            raise ValueError
    except (OSError, SafetensorError, KeyError, ValueError):
        raise UserError(f"{path} is damaged, or no snapshot", _REMEDY) from None
    return Snapshot(path, step, begun, lengths)
