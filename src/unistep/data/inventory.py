"""The inventory of a folder or archive: its images, the documents beside them, and a count of all that is passed over.

Every reader of image files takes it, so that training, `data inspect`, evaluation and editing find the same images
under the same names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from unistep.data.formats import can_read
from unistep.data.names import brief, is_litter, normalised
from unistep.errors import UserError
from unistep.text import shown

Entry = TypeVar("Entry")

DATASET_JSON = "dataset.json"
METADATA = ("metadata.jsonl", "metadata.csv")

SPECIAL = "special"
"""Kind of what has an image's name and is a pipe, a socket or a device."""

_OTHER = "other"
_KINDS_SHOWN = 6
# What lies beside images by intent: texts, tables, web pages. It is passed over quietly.
_QUIET = frozenset(
    ".txt .json .jsonl .csv .tsv .md .rst .xml .yaml .yml .toml .html .htm .log .ini .lst .cfg .url .md5".split()
)
_QUIET_NAMES = frozenset("readme license licence copying notice authors changelog citation makefile".split())


@dataclass(frozen=True)
class Inventory(Generic[Entry]):
    """The content of a folder or archive.

    Args:
        images: normalised name and entry of each image, sorted by name as EDM sorts them.
        documents: entry of each document that may hold labels, by normalised name.
        passed: number of the files that are passed over, by kind: the ending in lower case, "" for none.
    """

    images: list[tuple[str, Entry]]
    documents: dict[str, Entry]
    passed: dict[str, int]


def take_inventory(entries: Iterable[tuple[str, Entry]], location: str) -> Inventory[Entry]:
    """Sorts entries into images, documents and the rest.

    Args:
        entries: name, as it is spelled there, and entry of each file.
        location: source as the user wrote it.

    Raises:
        UserError: two images or documents have the same normalised name.
    """
    images: dict[str, Entry] = {}
    documents: dict[str, Entry] = {}
    passed: Counter[str] = Counter()
    for spelled, entry in entries:
        name = normalised(spelled)
        if not name or is_litter(name):
            continue
        if is_image_name(name):
            found = images
        elif is_document_name(name):
            found = documents
        else:
            if (kind := kind_of(name)) is not None:
                passed[kind] += 1
            continue
        if name in found:
            raise UserError(
                f"{shown(location)}: {brief(name)} is there twice, and nothing tells the one that counts; keep one"
            )
        found[name] = entry
    return Inventory(sorted(images.items(), key=lambda item: item[0]), documents, dict(passed.most_common()))


def is_image_name(name: str) -> bool:
    """Returns whether a normalised name is that of an image that can be read here."""
    return not is_litter(name) and can_read(PurePosixPath(name).suffix.lower())


def is_document_name(name: str) -> bool:
    """Returns whether a normalised name is that of a document that may hold labels."""
    return PurePosixPath(name).name in (DATASET_JSON, *METADATA)


def kind_of(name: str) -> str | None:
    """The kind of a file that is passed over: its ending, "" for none; None for one of which nothing is said."""
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if not suffix:
        return None if path.name.lower() in _QUIET_NAMES else ""
    if suffix in _QUIET:
        return None
    return suffix if re.fullmatch(r"\.\w{1,10}", suffix) else _OTHER


def passed_over(passed: Mapping[str, int]) -> str:
    """The counts in words, as `8 .heic and 3 without ending`; empty where nothing was passed over."""
    parts = [f"{count:,} {_IN_WORDS.get(kind, kind)}" for kind, count in passed.items()]
    if len(parts) > _KINDS_SHOWN:
        rest = sum(list(passed.values())[_KINDS_SHOWN - 1 :])
        parts = [*parts[: _KINDS_SHOWN - 1], f"{rest:,} of {len(parts) - _KINDS_SHOWN + 1} more kinds"]
    return in_a_row(parts)


_IN_WORDS = {"": "without ending", SPECIAL: "that are no files", _OTHER: "with other endings"}


def in_a_row(parts: Sequence[str]) -> str:
    """Parts as `a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
