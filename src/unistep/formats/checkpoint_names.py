"""Names of the checkpoints in a folder. Nothing here imports torch: lists of runs read them."""

import re
from pathlib import Path

_NAME = re.compile(r"step-(\d{8})\.pt")


def checkpoint_steps(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in `folder`, ascending."""
    return steps_by_name(folder, _NAME)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Returns the path of the checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.pt"


def parts_folder(path: Path) -> Path:
    """The folder of the files beside a checkpoint.

    Args:
        path: the checkpoint.
    """
    return path.with_suffix(".parts")


def steps_by_name(folder: Path, name: re.Pattern[str]) -> list[int]:
    """Returns the steps in the names of a folder's files, ascending.

    Args:
        folder: folder; one that is missing has none.
        name: pattern of the whole name, whose first group is the step.
    """
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for p in folder.iterdir() if (m := name.fullmatch(p.name)))
