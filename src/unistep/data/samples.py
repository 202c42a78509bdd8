"""Samples of WebDataset's shards: consecutive members of one key, an image and what stands beside it.

The key of `a/0001.jpg` and `a/0001.cls` is `a/0001`: the name up to the first dot after the last slash.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unistep.data.inventory import SPECIAL, is_image_name, kind_of
from unistep.data.names import brief, is_litter, leads_out, normalised
from unistep.data.tar import FILE, LINK, SPARSE, Member, TarError, members
from unistep.documents import DocumentError, parse_json
from unistep.errors import UserError
from unistep.text import shown

WHOLE, IS_SPARSE, IS_HUGE = 0, 1, 2
"""States of an image's member."""

NO_LABEL = -1
LARGEST_FILE = 1 << 28

_LABELS = ("cls", "json", "txt")
_MOST_TEXT, _MOST_JSON = 4096, 1 << 20
_LONGEST_NAME = 200  # of a class; a longer text is a caption
_KEYS = ("label", "labels", "cls", "class", "class_name", "category")


@dataclass
class ShardListing:
    """The images of a shard, in the order of its members.

    Args:
        starts, sizes: place of each image in the shard, in bytes.
        states: WHOLE, IS_SPARSE or IS_HUGE for each image.
        labels: position of each image's label in `texts`; NO_LABEL for none.
        texts: labels, each once.
        names: normalised names of the images, one after the other.
        ends: end of each name in `names`.
        passed: number of the files that are passed over, by kind.
        only_texts: whether all labels are those of `.txt`.
        bad_label: first file that should hold a class and does not, with the reason; empty if there is none.
        fault: reason why the rest of the shard cannot be read; empty if all was.
    """

    starts: Any = field(default_factory=lambda: array("q"))
    sizes: Any = field(default_factory=lambda: array("q"))
    states: Any = field(default_factory=lambda: array("B"))
    labels: Any = field(default_factory=lambda: array("i"))
    texts: list[str] = field(default_factory=list)
    names: bytearray = field(default_factory=bytearray)
    ends: Any = field(default_factory=lambda: array("q"))
    passed: Counter[str] = field(default_factory=Counter)
    only_texts: bool = True
    bad_label: str = ""
    fault: str = ""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the columns as arrays."""
        kinds = {"starts": "<i8", "sizes": "<i8", "states": "u1", "labels": "<i4", "ends": "<i8"}
        return {name: np.array(getattr(self, name), kind) for name, kind in kinds.items()}


def list_shard(path: Path) -> ShardListing:
    """Lists the images of a shard and their labels.

    Args:
        path: the shard.

    Raises:
        UserError: a name leads out of the archive, or the shard cannot be read.
    """
    listing = ShardListing()
    try:
        with open(path, "rb", buffering=0) as file:
            _Lister(path, file.fileno(), listing).run()
    except OSError as error:
        raise UserError(f"{shown(path)}: it cannot be read ({error.strerror or shown(error)})") from error
    return listing


class _Lister:
    """Sorts the members of a shard into samples."""

    def __init__(self, path: Path, file: int, listing: ShardListing) -> None:
        self._path, self._file, self._listing = path, file, listing
        self._codes: dict[str, int] = {}
        self._key = ""
        self._images: list[tuple[str, str, Member]] = []  # normalised name, extension, member
        self._beside: dict[str, Member] = {}

    def run(self) -> None:
        listed = members(self._path)
        while True:
            try:
                member = next(listed, None)
            except TarError as error:
                self._listing.fault = str(error)
                return  # without the last sample: more of it may be missing
            if member is None:
                break
            self._add(member)
        self._flush()

    def _add(self, member: Member) -> None:
        if leads_out(member.name):
            raise UserError(
                f"{shown(self._path)}: its file {brief(member.name)} leads out of the archive",
                "pack the images anew, by names within their folder",
            )
        name = normalised(member.name)
        if not name or is_litter(name):
            return
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        key = f"{folder}{slash}{stem}"
        if key != self._key:
            self._flush()
            self._key = key
        if member.kind not in (FILE, SPARSE):
            # A link may lead anywhere, and its target is there by its own name if it is in the archive.
            if is_image_name(name) or member.kind != LINK:
                self._listing.passed[SPECIAL] += 1
        elif is_image_name(name):
            self._images.append((name, extension.lower(), member))
        elif extension.lower() in _LABELS:
            self._beside[extension.lower()] = member
        elif (kind := kind_of(name)) is not None:
            self._listing.passed[kind] += 1

    def _flush(self) -> None:
        images, beside = self._images, self._beside
        if images:
            # `a.seg.png` beside `a.png` is a mask, while `a.v2.png` alone is an image.
            chosen = next((one for one in images if "." not in one[1]), images[0])
            for name, extension, _ in images:
                if "." in extension and name != chosen[0]:
                    self._listing.passed[f".{extension}" if len(extension) < 20 else "other"] += 1
            label = self._label(beside)
            for name, extension, member in images:
                if "." not in extension or name == chosen[0]:
                    self._image(name, member, label)
        self._images, self._beside = [], {}

    def _image(self, name: str, member: Member, label: int) -> None:
        one = self._listing
        state = IS_SPARSE if member.kind == SPARSE else IS_HUGE if member.size > LARGEST_FILE else WHOLE
        one.starts.append(member.start)
        one.sizes.append(member.size)
        one.states.append(state)
        one.labels.append(label)
        one.names += name.encode("utf-8", "backslashreplace")
        one.ends.append(len(one.names))

    def _label(self, beside: dict[str, Member]) -> int:
        for extension in _LABELS:
            if extension not in beside:
                continue
            text = self._text(extension, beside[extension])
            if text is None:
                continue
            self._listing.only_texts &= extension == "txt"
            if text not in self._codes:
                self._codes[text] = len(self._codes)
                self._listing.texts.append(text)
            return self._codes[text]
        return NO_LABEL

    def _text(self, extension: str, member: Member) -> str | None:
        """The label that a file holds; None if it holds none."""
        most = _MOST_JSON if extension == "json" else _MOST_TEXT
        if member.kind != FILE or member.size > most:
            if extension == "txt":
                return None
            return self._bad(member, f"it has {member.size:,} bytes")
        content = os.pread(self._file, member.size, member.start)
        if extension == "json":
            try:
                document = parse_json(content)
            except DocumentError as error:
                return self._bad(member, f"it is not JSON ({brief(error)})")
            if isinstance(document, dict):
                document = next((document[key] for key in _KEYS if key in document), None)
            if type(document) is int:
                document = str(document) if abs(document) < 10**18 else "beyond all bounds"
            if type(document) is not str:
                return None
            text = document
        else:
            text = content.decode("utf-8", "backslashreplace")
        text = text.strip()
        if extension == "txt" and ("\n" in text or len(text) > _LONGEST_NAME):
            return None
        if not text or len(text) > _LONGEST_NAME or "\n" in text:
            return self._bad(member, "it holds no class")
        return text

    def _bad(self, member: Member, reason: str) -> None:
        self._listing.bad_label = self._listing.bad_label or f"{brief(member.name)}: {reason}"
