"""Parquet files in the layout of Hugging Face's datasets: a column of encoded images, and one of labels.

An image is a struct of `bytes` and `path`, or bytes alone. The files are read by pyarrow, a row group at a time.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unistep.data.columns import (
    RowsReader,
    content_of,
    image_column,
    label_column,
    labels_of,
    pyarrow,
)
from unistep.data.encoded import EncodedReader
from unistep.data.files import files_fingerprint
from unistep.data.names import brief, files_in
from unistep.data.reader import BadImage, Labels
from unistep.data.splits import of_one_split
from unistep.errors import UserError
from unistep.text import shown

_PARQUET = re.compile(r"(?is).+\.parquet")
_MOST_GROUP = 2 << 30
_GROUPS_HELD = 4


def open_parquet(path: Path, location: str) -> EncodedReader | None:
    """Opens a .parquet, or a folder of those of one split.

    Args:
        path: file, folder, or folder around `data/`.
        location: source as the user wrote it.

    Returns:
        The reader; None where it is no such folder or file.

    Raises:
        UserError: pyarrow is not installed, a file is damaged, or the folder holds several splits.
    """
    if path.is_file() and _PARQUET.fullmatch(path.name):
        return RowsReader(_Rows([path], location))
    if not path.is_dir():
        return None
    for folder in (path, path / "data"):
        files = files_in(folder, _PARQUET)
        if not files:
            continue
        of_split, line = of_one_split(files, location)
        return RowsReader(_Rows(of_split, location), line)
    return None


class _Rows:
    """The rows of the files as image files, by position."""

    documents: tuple[str, ...] = ()

    def __init__(self, paths: Sequence[Path], location: str) -> None:
        parquet = pyarrow("pyarrow.parquet", location)
        self.location = location
        self.passed: dict[str, int] = {}
        self.names: list[str] = []
        self.sizes: list[int] = []
        self._places: list[tuple[int, int, int]] = []  # file, row group, row in it
        self._paths = list(paths)
        self._lock = threading.Lock()
        self._held: dict[tuple[int, int], list[Any]] = {}
        self._files: list[Any] = []
        for path in paths:
            try:
                self._files.append(parquet.ParquetFile(path))
            except Exception as error:  # pyarrow's own errors, and those of the system
                raise self._damaged(path, error) from error
        first = self._files[0].schema_arrow
        self._image, self._label = image_column(first, str(paths[0])), label_column(first)
        for number, file in enumerate(self._files):
            if self._image not in file.schema_arrow.names:
                raise UserError(f"{shown(paths[number])}: it has no column {brief(self._image)}, as others of it have")
            for group in range(file.num_row_groups):
                self._count(number, group)

    def _count(self, number: int, group: int) -> None:
        """Adds the rows of a row group."""
        row_group = self._files[number].metadata.row_group(group)
        if row_group.total_byte_size > _MOST_GROUP:
            raise UserError(
                f"{shown(self._paths[number])}: its row group {group} takes {row_group.total_byte_size:,} bytes",
                "write it in smaller row groups",
            )
        contents = self._group(number, group)
        if len(self.names) + len(contents) > 100_000_000:
            raise UserError(f"{shown(self.location)}: it has more than 100,000,000 rows")
        for row, content in enumerate(contents):
            self.names.append(f"{self._paths[number].name}/{len(self.names)}")
            self.sizes.append(len(content) if isinstance(content, bytes) else 0)
            self._places.append((number, group, row))

    def read(self, index: int, limit: int | None = None) -> bytes:
        number, group, row = self._places[index]
        with self._lock:
            try:
                content = self._group(number, group)[row]
            except UserError as error:
                raise BadImage(str(error)) from error
        if not isinstance(content, bytes):
            raise BadImage("its row holds no bytes; files beside a .parquet are not read")
        return content if limit is None else content[:limit]

    def read_document(self, name: str, most_bytes: int) -> bytes:
        raise KeyError(name)  # there are none

    def fingerprint(self) -> str:
        return files_fingerprint("parquet", self._paths)

    def labels(self) -> Labels | None:
        """Returns the labels; None where there is no column of them."""
        if self._label is None:
            return None
        values: list[Any] = []
        for path, file in zip(self._paths, self._files, strict=True):
            try:
                values += file.read(columns=[self._label]).column(0).to_pylist()
            except Exception as error:
                raise self._damaged(path, error) from error
        return labels_of(values, self._files[0].schema_arrow.metadata, self._label, self.location)

    def _group(self, number: int, group: int) -> list[Any]:
        """The encoded images of a row group; those that were read last are held."""
        key = number, group
        if key not in self._held:
            try:
                column = self._files[number].read_row_group(group, columns=[self._image]).column(self._image)
                rows = column.to_pylist()
            except Exception as error:
                raise self._damaged(self._paths[number], error) from error
            while len(self._held) >= _GROUPS_HELD:
                del self._held[next(iter(self._held))]
            self._held[key] = list(map(content_of, rows))
        return self._held[key]

    def _damaged(self, path: Path, error: Exception) -> UserError:
        return UserError(f"{shown(path)}: it is damaged or no .parquet ({brief(error)})", "fetch it again")
