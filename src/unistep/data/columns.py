"""Columns of images and labels in tables of Hugging Face's datasets, as .parquet and Arrow files have them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from unistep.data.classes import check_classes, check_label, class_order
from unistep.data.encoded import EncodedReader
from unistep.data.files import ImageFiles
from unistep.data.names import brief
from unistep.data.reader import Labels
from unistep.documents import DocumentError, parse_json
from unistep.errors import UserError
from unistep.text import shown

IMAGES = ("image", "img", "images", "jpg", "png", "webp", "pixel_values")
"""Names of columns of images, the first that is there counts."""

LABELS = ("label", "labels", "class", "fine_label", "cls", "category")
"""Names of columns of labels."""

INSTALL = "install it with: pip install 'unistep[parquet]'"


class Rows(ImageFiles, Protocol):
    """The rows of some files as image files, by position."""

    def labels(self) -> Labels | None:
        """Returns the labels; None where there is no column of them."""
        ...


class RowsReader(EncodedReader):
    """The images of a table, row by row.

    Args:
        rows: rows of its files.
        passed: line about what is not read; empty if all is.

    Raises:
        UserError: it has no rows.
    """

    def __init__(self, rows: Rows, passed: str = "") -> None:
        self._rows, self._passed = rows, passed
        super().__init__(rows)

    def labels(self) -> Labels | None:
        return self._rows.labels()

    def passed_over(self) -> str:
        return self._passed


def pyarrow(module: str, location: str) -> Any:
    """A module of pyarrow.

    Args:
        module: its name.
        location: source as the user wrote it.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{shown(location)}: it is read by pyarrow, which is not installed", INSTALL) from None


def image_column(schema: Any, location: str) -> str:
    """The name of the column of images.

    Args:
        schema: Arrow schema.
        location: file, for messages.

    Raises:
        UserError: there is none.
    """
    found = _column(schema, IMAGES, is_image)
    if found is None:
        columns = ", ".join(brief(name) for name in schema.names[:8])
        names = f"{', '.join(IMAGES[:-1])} or {IMAGES[-1]}"
        raise UserError(f"{shown(location)}: no column of images is called {names}; there are {columns}")
    return found


def label_column(schema: Any) -> str | None:
    """The name of the column of labels; None where there is none."""
    return _column(schema, LABELS, _is_label)


def content_of(row: Any) -> Any:
    """The encoded image of a row: bytes, or a struct with them; anything else where it holds none."""
    return row.get("bytes") if isinstance(row, dict) else row


def labels_of(values: Sequence[Any], metadata: Any, column: str, location: str) -> Labels:
    """Labels from the values of a column.

    Args:
        values: class number or name of each row.
        metadata: metadata of the schema, in which the datasets library keeps the names of classes.
        column: name of the column.
        location: source as the user wrote it.

    Raises:
        UserError: a value is no class.
    """
    if values and all(isinstance(value, str) for value in values):
        names = class_order(set(values), location)
        number = {name: index for index, name in enumerate(names)}
        return check_classes(Labels(np.array([number[value] for value in values], np.int64), names), location)
    numbers = [check_label(value, shown(location), f"row {index:,}") for index, value in enumerate(values)]
    names = _class_names(metadata, column)
    if names is not None and numbers and max(numbers) >= len(names):
        names = None
    return check_classes(Labels(np.array(numbers, np.int64), names), location)


def is_image(kind: Any) -> bool:
    """Whether a column of that type holds encoded images."""
    types = importlib.import_module("pyarrow.types")
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and is_image(kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _column(schema: Any, names: Sequence[str], fits: Callable[[Any], bool]) -> str | None:
    return next((name for name in names if name in schema.names and fits(schema.field(name).type)), None)


def _is_label(kind: Any) -> bool:
    types = importlib.import_module("pyarrow.types")
    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def _class_names(metadata: Any, label: str) -> list[str] | None:
    """The names of classes in the metadata that Hugging Face's datasets write; None where there are none."""
    try:
        document = parse_json((metadata or {})[b"huggingface"])
        names = document["info"]["features"][label]["names"]
    except (DocumentError, KeyError, TypeError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names
