"""Class labels of image files: from EDM's `dataset.json`, Hugging Face's metadata, or else class subfolders."""

from __future__ import annotations

import numpy as np

from unistep.data.class_folders import folders_of, labels_from_folders, refuse_splits
from unistep.data.classes import check_classes
from unistep.data.dataset_json import find_dataset_json, labels_from_json, most_bytes
from unistep.data.files import ImageFiles, full_name, shown_name
from unistep.data.metadata import labels_from_metadata
from unistep.data.reader import Labels
from unistep.errors import UserError

__all__ = ["labels_from_folders", "labels_from_json", "read_labels"]


def read_labels(files: ImageFiles) -> Labels | None:
    """The labels of image files.

    A `dataset.json` decides, also by having none; then metadata with labels; then class subfolders.

    Raises:
        UserError: the labels cannot be read, do not fit the files, or contradict each other.
    """
    document = find_dataset_json(files)
    if document is not None:
        content = files.read_document(document, most_bytes(len(files.names)))
        location = shown_name(files.location, document)
        labels = labels_from_json(content, location, files.names, document.rpartition("/")[0])
        if labels is not None:
            _check_agreement(files, labels, labels_from_metadata(files))
        return None if labels is None else check_classes(labels, files.location)
    refuse_splits(files.names, files.location)
    labels = labels_from_metadata(files)
    if labels is None:
        labels = labels_from_folders(files.names, files.location)
    elif labels.names is not None and set(labels.names) == set(folders := folders_of(files.names)):
        number = {name: index for index, name in enumerate(labels.names)}
        _check_agreement(files, labels, Labels(np.array([number[name] for name in folders]), labels.names))
    return None if labels is None else check_classes(labels, files.location)


def _check_agreement(files: ImageFiles, labels: Labels, others: Labels | None) -> None:
    """Refuses two sources by which an image is of different classes, whatever the classes are called."""
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
