"""Class labels of image files: from EDM's `dataset.json`, Hugging Face's metadata, or else class subfolders."""

from __future__ import annotations

from unistep.data.agreement import check_folders, check_sources
from unistep.data.class_folders import labels_from_folders, refuse_splits
from unistep.data.classes import check_classes
from unistep.data.dataset_json import find_dataset_json, labels_from_json, most_bytes
from unistep.data.files import ImageFiles, shown_name
from unistep.data.metadata import labels_from_metadata, metadata_of
from unistep.data.reader import Labels

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
            check_sources(files, labels, labels_from_metadata(files))
            check_folders(files, labels, document)
        return None if labels is None else check_classes(labels, files.location)
    refuse_splits(files.names, files.location)
    labels = labels_from_metadata(files)
    if labels is None:
        labels = labels_from_folders(files.names, files.location)
    else:
        check_folders(files, labels, metadata_of(files)[0])
    return None if labels is None else check_classes(labels, files.location)
