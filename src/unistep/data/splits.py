"""Splits of a dataset by the names of its files: `train-00000-of-00002.parquet`, `imagenet-validation-000012.tar`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from unistep.data.inventory import in_a_row
from unistep.errors import UserError
from unistep.text import shown

_NUMBERED = re.compile(r"(.+?)[-_.](\d+)[-_]of[-_](\d+)[-_.].*")
_KNOWN = ("train", "test", "validation", "val", "valid")


def of_one_split(files: Sequence[Path], location: str) -> tuple[list[Path], str]:
    """The files of the training images, or of the only split that is there.

    Args:
        files: files of a folder.
        location: source as the user wrote it.

    Returns:
        The files of one split, and the line that tells which are passed over; empty if none are.

    Raises:
        UserError: there are several splits, and none of training images.
    """
    splits = sorted({split_of(file) for file in files})
    chosen = "train" if "train" in splits else splits[0]
    if len(splits) > 1 and chosen != "train":
        raise UserError(f"{shown(location)}: it holds {in_a_row(splits[:5])}", "give a folder or file of one split")
    others = [split for split in splits if split != chosen]
    line = f"{shown(location)}: the files of {in_a_row(others[:5])} are passed over" if others else ""
    return [file for file in files if split_of(file) == chosen], line


def has_splits(files: Sequence[Path]) -> bool:
    """Whether a file is named after a split that is known by its name."""
    return any(split_of(file) in _KNOWN for file in files)


def split_of(path: Path) -> str:
    """The split in a name: `train` of `train-00000-of-00002-abc.parquet` and of `cifar10-train.parquet`."""
    match = _NUMBERED.fullmatch(path.name)
    name = match[1] if match else path.stem
    return next((word for word in re.split(r"[-_.]", name.lower()) if word in _KNOWN), name)
