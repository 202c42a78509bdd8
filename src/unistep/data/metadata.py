"""Labels of Hugging Face's `imagefolder` layout: `metadata.jsonl` or `metadata.csv` with the column `file_name`.

The labels stand in the first of the columns `label`, `labels`, `class` and `category` that is there: class numbers, or
names, which are numbered in sorted order. All such files of a dataset count, each for the images of its own folder.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from unistep.data.classes import MOST_LABEL, check_label, class_order
from unistep.data.dataset_json import contradiction, most_bytes, values_of
from unistep.data.files import ImageFiles, shown_name
from unistep.data.inventory import METADATA, in_a_row
from unistep.data.names import brief, normalised
from unistep.data.reader import Labels
from unistep.documents import parse_json
from unistep.errors import UserError
from unistep.files import stand_in

_LOG = logging.getLogger(__name__)

_FILE_NAME = "file_name"
_COLUMNS = ("label", "labels", "class", "category")
_COLUMNS_SHOWN = 8

Row = dict[str, Any]


def labels_from_metadata(files: ImageFiles) -> Labels | None:
    """The labels of image files from their metadata; None if it has none. A file without labels is said to be unused.

    Raises:
        UserError: a file cannot be read, contradicts itself or another, or does not fit the images.
    """
    by_name: dict[str, Any] = {}
    used: list[str] = []
    for name in metadata_of(files):
        location = shown_name(files.location, name)
        rows = _rows(files.read_document(name, most_bytes(len(files.names))), name, location)
        column = _column(rows, location)
        if column is None:
            continue
        used.append(name)
        _collect(rows, column, name, location, by_name)
    if not used:
        return None
    location = shown_name(files.location, in_a_row([brief(name) for name in used[:3]]))
    values = values_of(by_name, files.names, location)
    if all(isinstance(value, int) for value in values):
        return Labels(np.array(values, np.int64))
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{location}: some labels are numbers and others names; give one or the other")
    names = set(values)
    if len(names) > MOST_LABEL:
        raise UserError(f"{location}: {len(names):,} names of classes are more than the {MOST_LABEL:,} that can be")
    ordered = class_order(names, files.location)
    number = {name: index for index, name in enumerate(ordered)}
    return Labels(np.array([number[value] for value in values], np.int64), ordered)


def metadata_of(files: ImageFiles) -> list[str]:
    """The names of the metadata files, sorted."""
    return sorted(name for name in files.documents if name.rpartition("/")[2] in METADATA)


def _rows(content: bytes, name: str, location: str) -> list[Row]:
    if found := stand_in(content[:512]):
        raise UserError(f"{location} {found}")
    try:
        text = content.decode("utf-8-sig")
        if name.endswith(".csv"):
            return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)]
        rows = [parse_json(line) for line in text.split("\n") if line.strip()]
    except (ValueError, csv.Error) as error:
        kind = "CSV" if name.endswith(".csv") else "a JSON object on each line"
        raise UserError(f"{location}: it is not {kind} ({brief(error)})") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{location}: row {number + 1} is no JSON object")
    return rows


def _column(rows: list[Row], location: str) -> str | None:
    """The column of the labels; None where there is none, which is said."""
    columns = [str(key) for key in dict.fromkeys(key for row in rows for key in row)]
    column = next((name for name in _COLUMNS if name in columns), None)
    if column is not None and _FILE_NAME in columns:
        return column
    missing = _FILE_NAME if _FILE_NAME not in columns else f"{', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]}"
    there = ", ".join(brief(name) for name in columns[:_COLUMNS_SHOWN]) or "none"
    _LOG.warning("%s: it is not used for labels: no column is called %s; there are %s", location, missing, there)
    return None


def _collect(rows: Iterable[Row], column: str, name: str, location: str, by_name: dict[str, Any]) -> None:
    """Adds the label of every row to `by_name`."""
    rows = list(rows)
    folder, _, _ = name.rpartition("/")
    is_table = name.endswith(".csv")
    # A table has text alone: its labels are numbers where all of them are.
    numbers = is_table and all(re.fullmatch(r"-?[0-9]+", row.get(column) or "") for row in rows)
    for index, row in enumerate(rows):
        file_name, label = row.get(_FILE_NAME), row.get(column)
        if not isinstance(file_name, str) or not file_name:
            raise UserError(f"{location}: row {index + 1} has no {_FILE_NAME}")
        if numbers:
            label = int(str(label)) if len(str(label)) < 100 else 10**100
        if isinstance(label, str):
            if not label.strip():
                raise UserError(f"{location}: {brief(file_name)} has an empty {column}; label it")
        else:
            label = check_label(label, location, brief(file_name))
        key = normalised(f"{folder}/{file_name}")
        if by_name.setdefault(key, label) != label or type(by_name[key]) is not type(label):
            raise contradiction(location, file_name, by_name[key], label)
