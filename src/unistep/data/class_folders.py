"""Classes of subfolders: `cat/1.png`, `dog/2.png`."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import PurePosixPath

import numpy as np

from unistep.data.classes import class_order
from unistep.data.files import shown_name
from unistep.data.inventory import in_a_row
from unistep.data.names import brief
from unistep.data.reader import Labels
from unistep.errors import UserError
from unistep.text import shown

_LOG = logging.getLogger(__name__)

_SPLIT = re.compile(
    r"(train|training|val|valid|validation|test|testing|dev|eval|evaluation|extra|unlabell?ed|hold[-_ ]?out)"
    r"([-_ ]?(set|images?|imgs?|data|split))?([-_ ]?([0-9]+|[ab]))?",
    re.IGNORECASE,
)
_RUNNING = re.compile(r"[0-9]{5,}")


def labels_from_folders(names: Sequence[str], location: str = "") -> Labels | None:
    """Labels from class subfolders, numbered in sorted order: `cat/1.png`, `dog/2.png` -> 0, 1.

    Folders around all of the images (as in `photos/train/cat/1.png`, `photos/train/dog/2.png`) are ignored. Images in a
    single folder have no classes, and neither have those in the running folders that EDM's tools make.

    Args:
        names: normalised names of the images, sorted.
        location: source, for messages.

    Raises:
        UserError: the folders are the splits of a dataset, or two of them are the same number.
    """
    refuse_splits(names, location)
    own = folders_of(names)
    found = set(own)
    if len(found) < 2:
        return None
    loose = [name for name, folder in zip(names, own, strict=True) if not folder]
    if loose:
        _LOG.warning(
            "class subfolders are not used as labels: %d of %d images lie outside of them, such as %s",
            len(loose),
            len(names),
            brief(loose[0]),
        )
        return None
    if are_running(own, names):
        _LOG.warning(
            "%s: its folders %s to %s number the images and are no classes, and no dataset.json has labels: the images"
            " have none; name the folders after their classes if they are",
            shown(location),
            min(found),
            max(found),
        )
        return None
    _say_splits_below(names, location)
    classes = class_order(found, location)
    number = {name: index for index, name in enumerate(classes)}
    return Labels(np.array([number[folder] for folder in own], np.int64), classes)


def folders_of(names: Sequence[str]) -> list[str]:
    """The folder of each image at the first level at which they are in several; empty for an image above it.

    Args:
        names: normalised names of the images.
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    depth = _common(folders)
    return [folder[depth] if len(folder) > depth else "" for folder in folders]


def refuse_splits(names: Sequence[str], location: str) -> None:
    """Refuses images in the folders train, test and the like, of which a single one may be that of trains.

    Args:
        names: normalised names of the images.
        location: source, for messages.

    Raises:
        UserError: two folders or more have such names; the one to give is named.
    """
    found = set(folders_of(names))
    if not are_splits(found):
        return
    splits = sorted(name for name in found if _SPLIT.fullmatch(name))
    above = PurePosixPath(names[0]).parts[: _common([PurePosixPath(name).parts[:-1] for name in names])]
    first = next((name for name in splits if name.lower().startswith("train")), splits[0])
    place = "/".join((*above, first))
    whole = shown_name(location, place)
    remedy = f"give an archive of {brief(place)} alone" if location.lower().endswith(".zip") else f"give {whole}"
    raise UserError(
        f"{shown(location)}: its folders {in_a_row([brief(name) for name in splits[:5]])} are splits of a dataset and"
        f" no classes; {remedy}, or take all images without labels with `use_labels=False`"
    )


def are_splits(folders: Collection[str]) -> bool:
    """Returns whether two folders or more have the names of splits.

    Args:
        folders: names of folders, each once.
    """
    return sum(_SPLIT.fullmatch(name) is not None for name in folders) > 1


def _common(folders: Sequence[tuple[str, ...]]) -> int:
    """Number of folders around all images."""
    if not folders:
        return 0
    low, high = min(folders), max(folders)
    return next((i for i, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))


def _say_splits_below(names: Sequence[str], location: str) -> None:
    found = {part for name in names for part in PurePosixPath(name).parts[:-1] if _SPLIT.fullmatch(part)}
    if len(found) > 1:
        _LOG.warning(
            "%s: its classes hold the splits %s; the images of all of them are taken",
            shown(location),
            in_a_row([brief(name) for name in sorted(found)[:5]]),
        )


def are_running(folders: Sequence[str], names: Sequence[str]) -> bool:
    """Returns whether folders number the images, as 00000/img00000000.png and 00001/img00001000.png do.

    Their names are numbers of five digits or more, padded with zeros to one length, and the images' own numbers grow
    from folder to folder. Class folders of such names have images that are numbered anew, or not at all.

    Args:
        folders: folder of each image.
        names: normalised names of the images.
    """
    spans: dict[str, list[int]] = {}
    for folder, name in zip(folders, names, strict=True):
        number = re.search(r"([0-9]{1,18})\.\w+$", name)
        if not _RUNNING.fullmatch(folder) or number is None:
            return False
        spans.setdefault(folder, []).append(int(number[1]))
    ordered = sorted(spans)
    if len({len(folder) for folder in ordered}) > 1:
        return False
    return all(max(spans[one]) < min(spans[other]) for one, other in pairwise(ordered))
