"""Agreement of an image's class by two sources of labels."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from unistep.data.class_folders import are_running, are_splits, folders_of
from unistep.data.files import ImageFiles, full_name
from unistep.data.inventory import in_a_row
from unistep.data.names import brief
from unistep.data.reader import Labels
from unistep.errors import UserError
from unistep.text import shown

_LOG = logging.getLogger(__name__)

_RELATED = 2 / 3
"""Share of images of the class that goes with their folder from which on the folders are those of classes."""

One = TypeVar("One")
Other = TypeVar("Other")


def check_sources(files: ImageFiles, labels: Labels, others: Labels | None) -> None:
    """Refuses two documents by which an image is of different classes, whatever the classes are called.

    Raises:
        UserError: an image has two classes; names it.
    """
    if others is None:
        return
    counterpart: dict[int, int] = {}
    back: dict[int, int] = {}
    same_kind = labels.names == others.names  # numbers and names are compared by what they part
    for index, (one, other) in enumerate(zip(labels.values.tolist(), others.values.tolist(), strict=True)):
        differs = one != other and same_kind
        if differs or counterpart.setdefault(one, other) != other or back.setdefault(other, one) != one:
            raise UserError(
                f"{full_name(files, index)} has contradicting labels from two sources; remove one of them, or leave"
                " labels unread with `use_labels=False`"
            )


def check_folders(files: ImageFiles, labels: Labels, document: str) -> None:
    """Refuses labels of a document by which an image is of another class than by its class folder.

    Folders that are parts of classes, or hold several whole classes, contradict nothing. Folders that have
    nothing to do with the labels are reported in a warning.

    Args:
        files: images.
        labels: their labels by the document.
        document: name of the document.

    Raises:
        UserError: an image has two classes; names it.
    """
    folders = folders_of(files.names)
    found = set(folders)
    if len(found) < 2 or "" in found or are_splits(found) or are_running(folders, files.names):
        return
    names = [str(value) for value in labels.values.tolist()]
    if labels.names is not None:
        names = [labels.names[value] for value in labels.values.tolist()]
    index = _by_name(folders, names)
    if index is None and not (_is_function(folders, names) or _is_function(names, folders)):
        index = _by_majority(folders, names)
        if index is None:
            _LOG.warning(
                "%s: the classes are those of %s; the folders %s have nothing to do with them",
                *(shown(files.location), brief(document), in_a_row([brief(name) for name in sorted(found)[:5]])),
            )
    if index is not None:
        raise UserError(
            f"{full_name(files, index)} has contradicting labels: class {brief(names[index])} by {brief(document)}, and"
            f" another by its folder; correct one, remove {brief(document)}, rename the folders if they are no classes,"
            " or leave labels unread with `use_labels=False`"
        )


def _by_name(folders: Sequence[str], names: Sequence[str]) -> int | None:
    """The first image whose folder is the name of another class, or whose class that of another folder."""
    by_folder, by_class = {_key(name) for name in folders}, {_key(name) for name in names}
    if all(isinstance(key, int) for key in by_folder | by_class) and not by_class <= by_folder:
        return None  # numbered parts
    for index, (folder, name) in enumerate(zip(map(_key, folders), map(_key, names), strict=True)):
        if folder != name and (folder in by_class or name in by_folder):
            return index
    return None


def _by_majority(folders: Sequence[str], names: Sequence[str]) -> int | None:
    """The first image that is not of the class that goes with its folder, if there are as many classes as folders."""
    counts = Counter(zip(folders, names, strict=True))
    usual: dict[str, str] = {}
    for (folder, name), _ in counts.most_common():
        if folder not in usual and name not in usual.values():
            usual[folder] = name
    agreeing = sum(counts[pair] for pair in usual.items())
    if not len(usual) == len(set(folders)) == len(set(names)) or agreeing < _RELATED * len(names):
        return None
    return next(i for i, pair in enumerate(zip(folders, names, strict=True)) if usual[pair[0]] != pair[1])


def _is_function(ones: Sequence[One], others: Sequence[Other]) -> bool:
    """Whether equal ones always have equal others."""
    seen: dict[One, Other] = {}
    return all(seen.setdefault(one, other) == other for one, other in zip(ones, others, strict=True))


def _key(name: str) -> int | str:
    """A name in a form to compare: a number as such."""
    return int(name) if re.fullmatch(r"[0-9]{1,18}", name) else name
