"""EDM's `dataset.json`: the class of each image of a folder or archive."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from unistep.data.classes import check_label
from unistep.data.files import ImageFiles, shown_name
from unistep.data.inventory import DATASET_JSON
from unistep.data.names import brief, normalised
from unistep.data.reader import Labels
from unistep.documents import DocumentError, parse_json
from unistep.errors import UserError
from unistep.files import stand_in
from unistep.text import shown

_LOG = logging.getLogger(__name__)

_MOST_BYTES = 1 << 30


def most_bytes(count: int) -> int:
    """The largest size that makes sense for a document of labels.

    Args:
        count: number of images beside it.
    """
    return min(_MOST_BYTES, (1 << 20) + 4096 * count)


def find_dataset_json(files: ImageFiles) -> str | None:
    """The `dataset.json` that belongs to the images: beside them, or one folder down where all of them are.

    Others are said to be unused.

    Raises:
        UserError: several folders have one each.
    """
    found = sorted(name for name in files.documents if name.rpartition("/")[2] == DATASET_JSON)
    below = [name for name in found if name.count("/") == 1]
    chosen = DATASET_JSON if DATASET_JSON in found else None
    if chosen is None and len(below) > 1:
        folders = [name.rpartition("/")[0] for name in below]
        raise UserError(
            f"{shown(files.location)}: {brief(below[0])} and {brief(below[1])} are those of two datasets; give"
            f" {shown_name(files.location, folders[0])} or {shown_name(files.location, folders[1])}, or leave labels"
            " unread with `use_labels=False`"
        )
    if chosen is None and below:
        chosen = below[0]
    for name in found:
        if name != chosen:
            _LOG.warning(
                "%s: it is not used, as it is not beside the images or one folder down",
                shown_name(files.location, name),
            )
    return chosen


def labels_from_json(content: bytes, location: str, names: Sequence[str], folder: str = "") -> Labels | None:
    """Labels from `{"labels": [["00000/img00000000.png", 3], ...]}`; None if `labels` is null or not there.

    Args:
        content: text of the file.
        location: name of the file, for messages.
        names: names of the image files; each must have a label.
        folder: folder of the file, which its names are relative to; empty for that of the names.

    Raises:
        UserError: the text is not of EDM's form or does not fit the files.
    """
    if found := stand_in(content[:512]):
        raise UserError(f"{location} {found}")
    try:
        document = parse_json(content)
    except DocumentError as error:
        raise UserError(f"{location}: it is not JSON ({brief(error)})") from error
    if not isinstance(document, dict):
        raise UserError(f'{location}: it must be an object with the key "labels"')
    pairs = document.get("labels")
    if pairs is None:
        return None
    if isinstance(pairs, dict):
        pairs = list(pairs.items())
    if not isinstance(pairs, list):
        raise UserError(f'{location}: "labels" must be a list of [file name, class number] pairs, or null')
    by_name: dict[str, int] = {}
    for pair in pairs:
        match pair:
            case [str(name), int(label)] | (str(name), int(label)) if not isinstance(label, bool):
                key = normalised(f"{folder}/{name}")
                number = check_label(label, location, brief(name))
                if by_name.setdefault(key, number) != number:
                    raise contradiction(location, name, by_name[key], number)
            case _:
                raise UserError(f"{location}: {_text(pair)} is not a pair of a file name and a class number from 0")
    return Labels(np.array(values_of(by_name, names, location), np.int64))


def values_of(by_name: dict[str, Any], names: Sequence[str], location: str) -> list[Any]:
    """The labels of images in their order.

    Args:
        by_name: label by normalised name.
        names: names of the image files.
        location: file that holds the labels, for messages.

    Raises:
        UserError: a name has no file, or an image no label.
    """
    known = set(names)
    absent = [name for name in by_name if name not in known]
    if absent:
        raise UserError(
            f"{location}: it names {brief(absent[0])}, which is not there ({len(absent)} of {len(by_name)} files are"
            " absent); restore the files or leave labels unread with `use_labels=False`"
        )
    unlabelled = [name for name in names if name not in by_name]
    if unlabelled:
        raise UserError(
            f"{location}: it has no label for {brief(unlabelled[0])} ({len(unlabelled)} of {len(names)} images have"
            " none); label them or leave labels unread with `use_labels=False`"
        )
    return [by_name[name] for name in names]


def contradiction(location: str, name: str, one: object, other: object) -> UserError:
    """The error for an image with two labels."""
    return UserError(
        f"{location}: {brief(name)} has two labels, {brief(one)} and {brief(other)}; keep one, or leave labels unread"
        " with `use_labels=False`"
    )


def _text(pair: object) -> str:
    try:
        return shown(json.dumps(pair))[:80]
    except (ValueError, RecursionError):  # a number of thousands of digits
        return f"a {type(pair).__name__}"
