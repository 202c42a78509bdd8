"""The index of a set of shards: where each image lies, made once and kept in the cache, mapped from there.

An entry is a folder `shards-<key>`, whose key is a hash of the paths, sizes and times of the shards:

    starts.npy, sizes.npy, states.npy, labels.npy   a number for each image
    shards.npy                                      shard of each image
    ends.npy, names.npy                             end of each name, and the names, UTF-8
    index.json                                      labels, counts and faults of the whole set

It is written under a temporary name and renamed. A process that decodes opens it by its path.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unistep.data.cache import cache_root
from unistep.data.files import files_fingerprint
from unistep.data.parallel import ordered_map
from unistep.data.samples import ShardListing, list_shard
from unistep.errors import UserError
from unistep.files import is_full, write_error
from unistep.runtime.progress import Bar
from unistep.text import shown

_FORMAT = 1  # raised whenever the same shards would give another index
_COLUMNS = ("starts", "sizes", "states", "labels", "shards", "ends", "names")
_ABOUT = "index.json"
_BAR_ABOVE = 1 << 30  # bytes
_TASK_BYTES = 16 << 20


@dataclass(frozen=True)
class About:
    """The facts about a set of shards that are not of single images.

    Args:
        paths: the shards, in order.
        texts: labels, each once; images refer to them by their positions.
        only_texts: whether all labels are those of `.txt`.
        bad_label: first file that should hold a class and does not, with the reason; empty if there is none.
        faults: shard, and reason why its rest cannot be read, of each that is damaged.
        passed: number of the files that are passed over, by kind.
        fingerprint: text that changes with names, sizes, times or places of the shards.
    """

    paths: list[str]
    texts: list[str]
    only_texts: bool
    bad_label: str
    faults: list[list[str]]
    passed: dict[str, int]
    fingerprint: str


class ShardIndex:
    """An index that is mapped from its folder.

    Args:
        folder: the folder.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is not there, or not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = About(**json.loads((folder / _ABOUT).read_text("utf-8")))
        columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _COLUMNS}
        self.starts, self.sizes, self.states = columns["starts"], columns["sizes"], columns["states"]
        self.labels, self.shards, self.ends = columns["labels"], columns["shards"], columns["ends"]
        self._names = columns["names"]
        if len({len(columns[name]) for name in _COLUMNS[:-1]}) != 1:
            raise ValueError("columns of different lengths")

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def has_folders(self) -> bool:
        """Whether a name has a folder in it."""
        return bool((np.asarray(self._names) == ord("/")).any())

    def name(self, index: int) -> str:
        """The name of an image, with that of its shard before it."""
        begin = int(self.ends[index - 1]) if index else 0
        own = bytes(self._names[begin : int(self.ends[index])]).decode("utf-8", "backslashreplace")
        return f"{os.path.basename(self.about.paths[int(self.shards[index])])}/{own}"


def shard_index(paths: Sequence[Path], cache_dir: Path | None = None) -> ShardIndex:
    """Opens the index of a set of shards; makes it where it is not in the cache.

    Args:
        paths: the shards, in order.
        cache_dir: folder of the cache; None is the user's.

    Raises:
        UserError: a shard cannot be read, or the cache cannot be written.
    """
    print_of_all = files_fingerprint(f"shards {_FORMAT}", paths)
    root = cache_root() / "data" if cache_dir is None else cache_dir
    folder = root / f"shards-{hashlib.sha256(print_of_all.encode()).hexdigest()[:32]}"
    try:
        return ShardIndex(folder)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    about, columns = _join(paths, _listed(paths), print_of_all)
    temporary = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        temporary.mkdir(parents=True)
        for name, column in columns.items():
            np.save(temporary / f"{name}.npy", column)
        (temporary / _ABOUT).write_text(json.dumps(asdict(about)), "utf-8")
        _publish(temporary, folder)
        return ShardIndex(folder)
    except OSError as error:
        where = "choose another place with `cache_dir`"
        if is_full(error):
            raise write_error(folder, error, where) from error
        raise UserError(
            f"{shown(root)}: the index of the shards cannot be written ({error.strerror})", where
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    try:
        os.rename(temporary, folder)
    except OSError:
        try:
            ShardIndex(folder)  # another process was faster
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(temporary, folder)


def _listed(paths: Sequence[Path]) -> list[ShardListing]:
    total, listings = sum(path.stat().st_size for path in paths), []
    with Bar("indexing shards", len(paths), active=total > _BAR_ABOVE) as bar:
        for listing in ordered_map(lambda i: list_shard(paths[i]), len(paths), "", _TASK_BYTES):
            listings.append(listing)
            bar.update(len(listings))
    return listings


def _join(
    paths: Sequence[Path], listings: Sequence[ShardListing], print_of_all: str
) -> tuple[About, dict[str, NDArray[Any]]]:
    codes: dict[str, int] = {}
    passed: Counter[str] = Counter()
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in _COLUMNS}
    length = 0
    for number, listing in enumerate(listings):
        columns = listing.arrays()
        own = np.array([codes.setdefault(text, len(codes)) for text in listing.texts] + [-1], np.int32)
        columns["labels"] = own[columns["labels"]]  # the last one is that of no label
        columns["ends"] = columns["ends"] + length
        columns["shards"] = np.full(len(columns["starts"]), number, np.int32)
        columns["names"] = np.frombuffer(bytes(listing.names), np.uint8)
        length += len(listing.names)
        passed.update(listing.passed)
        for name in _COLUMNS:
            parts[name].append(columns[name])
    about = About(
        paths=[str(path.absolute()) for path in paths],
        texts=list(codes),
        only_texts=all(listing.only_texts for listing in listings),
        bad_label=next(
            (f"{p.name}/{one.bad_label}" for p, one in zip(paths, listings, strict=True) if one.bad_label), ""
        ),
        faults=[[path.name, one.fault] for path, one in zip(paths, listings, strict=True) if one.fault],
        passed=dict(passed.most_common()),
        fingerprint=print_of_all,
    )
    return about, {name: np.concatenate(parts[name]) for name in _COLUMNS}
