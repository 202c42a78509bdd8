"""Class labels of image files: from EDM's `dataset.json`, or else from class subfolders."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from unistep.data.files import DATASET_JSON, ImageFiles
from unistep.data.reader import Labels
from unistep.errors import UserError
from unistep.text import shown

_LOG = logging.getLogger(__name__)


def read_labels(files: ImageFiles) -> Labels | None:
    """The labels of image files: of a `dataset.json` if there is one, even without labels; else of subfolders.

    Raises:
        UserError: `dataset.json` is not of EDM's form or does not fit the files.
    """
    content = files.dataset_json()
    if content is None:
        return labels_from_folders(files.names)
    return labels_from_json(content, shown(PurePosixPath(files.location, DATASET_JSON)), files.names)


def labels_from_json(content: bytes, location: str, names: Sequence[str]) -> Labels | None:
    """Labels from `{"labels": [["00000/img00000000.png", 3], ...]}`; None if `labels` is null or not there.

    Args:
        content: text of the file.
        location: name of the file, for messages.
        names: names of the image files; each must have a label.

    Raises:
        UserError: the text is not of EDM's form or does not fit the files.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{location}: it is not JSON ({shown(error)})") from error
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
            case [str(name), int(label)] | (str(name), int(label)) if not isinstance(label, bool) and label >= 0:
                by_name[name.replace("\\", "/")] = label
            case _:
                text = shown(json.dumps(pair))[:80]
                raise UserError(f"{location}: {text} is not a pair of a file name and a class number from 0")
    known = set(names)
    absent = [name for name in by_name if name not in known]
    if absent:
        raise UserError(
            f"{location}: it names {shown(absent[0])}, which is not there ({len(absent)} of {len(by_name)} files are"
            " absent); restore the files or leave labels unread with `use_labels=False`"
        )
    unlabelled = [name for name in names if name not in by_name]
    if unlabelled:
        raise UserError(
            f"{location}: it has no label for {shown(unlabelled[0])} ({len(unlabelled)} of {len(names)} images have"
            " none); label them or leave labels unread with `use_labels=False`"
        )
    return Labels(np.array([by_name[name] for name in names], np.int64))


def labels_from_folders(names: Sequence[str]) -> Labels | None:
    """Labels from class subfolders, numbered in sorted order: `cat/1.png`, `dog/2.png` -> 0, 1.

    Folders around all of the images (as in `photos/train/cat/1.png`, `photos/train/dog/2.png`) are ignored. Images in a
    single folder have no classes.
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    if not folders:
        return None
    low, high = min(folders), max(folders)
    depth = next((i for i, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))
    if depth == len(high):
        return None
    loose = [name for name, folder in zip(names, folders, strict=True) if len(folder) == depth]
    if loose:
        _LOG.warning(
            "class subfolders are not used as labels: %d of %d images lie outside of them, such as %s",
            len(loose),
            len(names),
            shown(loose[0]),
        )
        return None
    classes = sorted({folder[depth] for folder in folders})
    number = {name: index for index, name in enumerate(classes)}
    return Labels(np.array([number[folder[depth]] for folder in folders], np.int64), classes)
