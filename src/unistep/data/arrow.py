"""Folders that Hugging Face's datasets library saves (`save_to_disk`): Arrow files, mapped into memory by pyarrow.

    dataset_dict.json                       names of the splits, each a folder as below
    state.json, dataset_info.json           of a split
    data-00000-of-00004.arrow, ...          its rows

Neither the library is needed, nor is anything executed that a folder describes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

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
from unistep.data.inventory import in_a_row
from unistep.data.names import brief
from unistep.data.reader import BadImage, Labels
from unistep.documents import read_json
from unistep.errors import UserError
from unistep.text import shown

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_AGAIN = "save it again with save_to_disk"
_MOST_BYTES = 16 << 20


def open_saved(path: Path, location: str) -> EncodedReader | None:
    """Opens a saved dataset, or the training images of several splits.

    Args:
        path: folder.
        location: source as the user wrote it.

    Returns:
        The reader; None where it is no such folder.

    Raises:
        UserError: pyarrow is not installed, a file is damaged or missing, or there are splits and none is of training.
    """
    if not path.is_dir():
        return None
    line = ""
    if (path / _SPLITS).is_file():
        document = read_json(path / _SPLITS, _AGAIN, most_bytes=_MOST_BYTES)
        splits = document.get("splits") if isinstance(document, dict) else None
        if not isinstance(splits, list) or not splits or not all(_is_name(split) for split in splits):
            raise UserError(f"{shown(path / _SPLITS)}: it does not list the splits", _AGAIN)
        chosen = "train" if "train" in splits else splits[0]
        if len(splits) > 1 and chosen != "train":
            raise UserError(
                f"{shown(location)}: it holds {in_a_row([brief(s) for s in splits[:5]])}", "give the folder of one"
            )
        others = in_a_row([brief(split) for split in splits if split != chosen][:5])
        line = f"{shown(location)}: {others} {'is' if len(splits) == 2 else 'are'} passed over" if others else ""
        path = path / chosen
    if not (path / _STATE).is_file():
        return None
    state = read_json(path / _STATE, _AGAIN, most_bytes=_MOST_BYTES)
    listed = state.get("_data_files") if isinstance(state, dict) else None
    found = [one.get("filename") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    names = [name for name in found if _is_name(name)]
    if not names or len(names) < len(found):
        return None
    if state.get("_indices_data_files"):
        raise UserError(
            f"{shown(path)}: its rows are in an order of their own, which is not read",
            "flatten_indices() and save it again",
        )
    return RowsReader(_Rows([path / name for name in names], location), line)


class _Rows:
    """The rows of Arrow files as image files, by position. Only those that are read are in memory."""

    documents: tuple[str, ...] = ()

    def __init__(self, paths: Sequence[Path], location: str) -> None:
        arrow = pyarrow("pyarrow", location)
        compute = pyarrow("pyarrow.compute", location)
        self.location, self.passed = location, dict[str, int]()
        self.names: list[str] = []
        self.sizes: list[int] = []
        self._paths = list(paths)
        self._chunks: list[Any] = []  # of the column of images
        self._starts: list[int] = []
        self._labels: list[Any] = []
        self._metadata: Any = None
        self._label: str | None = None
        for number, path in enumerate(paths):
            try:
                table = _read(arrow, path)
            except Exception as error:  # pyarrow's own errors, and those of the system
                raise UserError(f"{shown(path)}: it is damaged or no Arrow file ({brief(error)})", _AGAIN) from error
            image = image_column(table.schema, str(path))
            if number == 0:
                self._metadata, self._label = table.schema.metadata, label_column(table.schema)
            if self._label is not None and self._label not in table.schema.names:
                raise UserError(f"{shown(path)}: it has no column {brief(self._label)}, as the others have", _AGAIN)
            self._labels += [] if self._label is None else [table.column(self._label)]
            for chunk in table.column(image).chunks:
                content = compute.struct_field(chunk, "bytes") if arrow.types.is_struct(chunk.type) else chunk
                self._starts.append(len(self.names))
                self._chunks.append(chunk)
                self.sizes += [size or 0 for size in compute.binary_length(content).to_pylist()]
                self.names += [f"{path.name}/{len(self.names) + row}" for row in range(len(chunk))]

    def read(self, index: int, limit: int | None = None) -> bytes:
        chunk = bisect_right(self._starts, index) - 1
        content = content_of(self._chunks[chunk][index - self._starts[chunk]].as_py())
        if not isinstance(content, bytes):
            raise BadImage("its row holds no bytes; files beside the dataset are not read")
        return content if limit is None else content[:limit]

    def read_document(self, name: str, most_bytes: int) -> bytes:
        raise KeyError(name)  # there are none

    def fingerprint(self) -> str:
        return files_fingerprint("saved dataset", self._paths)

    def labels(self) -> Labels | None:
        """Returns the labels; None where there is no column of them."""
        if self._label is None:
            return None
        values = [value for column in self._labels for value in column.to_pylist()]
        return labels_of(values, self._metadata, self._label, self.location)


def _read(arrow: Any, path: Path) -> Any:
    """The table of a file, as a stream, which the library writes, or with an index at its end."""
    source = arrow.memory_map(str(path))
    try:
        table = arrow.ipc.open_stream(source).read_all()
    except arrow.ArrowInvalid:
        table = arrow.ipc.open_file(source).read_all()
    table.validate(full=True)  # offsets may lead out of the file
    return table


def _is_name(name: Any) -> TypeGuard[str]:
    return isinstance(name, str) and bool(name) and "/" not in name and "\\" not in name and name not in (".", "..")
