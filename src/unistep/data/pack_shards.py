"""Packing of a source of any size into shards; see `unistep.data.shards` for their reader.

    shard-000000.tar, ...    images 000000000.webp, ..., each with its class in a .cls
    dataset.json             number and shape of the images, names of the classes, size and SHA-256 sum of each shard
    rejected.json            name and reason of each image that is left out
    .packing/                facts about each shard until all are there

A shard holds the images of a fixed range of positions in the source. So they are made in any number of processes, a
packing that was broken off goes on with the first shard that is missing, and the bytes are the same in any case. A
shard has its name only when it is whole and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import features

from unistep.data.encode_pool import EncodePool
from unistep.data.encode_worker import Encoded, EncodeJob
from unistep.data.encoded import EncodedReader
from unistep.data.files import full_name
from unistep.data.names import brief
from unistep.data.parallel import ordered_stream
from unistep.data.raw import RawReader
from unistep.data.reader import BadImage, Labels, Pixels
from unistep.data.shards import ABOUT, PACKING
from unistep.data.tar import END, header, padding
from unistep.documents import DocumentError, parse_json
from unistep.errors import UserError
from unistep.files import whole_file, write_error
from unistep.runtime.lock import FolderLock
from unistep.runtime.progress import Bar
from unistep.text import shown

FORMAT, VERSION = "unistep-shards", 1
REJECTED = "rejected.json"

_TASK_IMAGES, _TASK_BYTES = 64, 8 << 20
_SETTINGS = "settings.json"
_FORMER = "it is there already; give another `output`, or remove it"


@dataclass(frozen=True)
class PackedShards:
    """The shards that were made.

    Args:
        names: names of the shards.
        num_images: number of images in them.
        num_bytes: bytes of the shards.
        rejected: name and reason of each image that is left out.
        former: number of the shards that were there before.
    """

    names: list[str]
    num_images: int
    num_bytes: int
    rejected: list[tuple[str, str]]
    former: int


def pack_shards(
    reader: EncodedReader | RawReader,
    labels: Labels | None,
    output: Path,
    *,
    resolution: int | None,
    channels: int | None,
    shard_images: int,
    workers: int,
    progress: bool = True,
) -> PackedShards:
    """Packs a source into shards, or goes on where a former call with the same arguments was broken off.

    Args:
        reader: source.
        labels: classes of its images; None for none.
        output: folder of the shards; it is made.
        resolution: side in pixels that images are resized to; None keeps their size.
        channels: 1 or 3; None keeps those of each image.
        shard_images: number of positions in the source of each shard.
        workers: number of processes.
        progress: whether a progress bar is shown.

    Raises:
        UserError: the folder holds something else or cannot be written, another process packs into it, or no image can
            be read.
    """
    if not features.check("webp"):
        raise UserError("this Pillow writes no WebP", "install Pillow from PyPI, which does")
    native = reader.native_shape if isinstance(reader, RawReader) else None
    bits = reader.grey_bits if isinstance(reader, EncodedReader) else 16
    job = EncodeJob(resolution, channels, bits, native)
    settings = {"format": FORMAT, "version": VERSION, "source": reader.fingerprint(), "job": job.to_dict()}
    settings |= {"images": len(reader), "shard_images": shard_images, "labels": _digest(labels)}
    settings = json.loads(json.dumps(settings))  # as it is read again
    try:
        with FolderLock("pack") as lock:
            _claim(output, settings, lock)
            prepared = native is not None or resolution is not None or channels is not None
            packing = _Packing(reader, labels, output, shard_images, prepared)
            with EncodePool(job, workers) as pool, Bar("packing images", len(reader), active=progress) as bar:
                packing.run(pool, workers, bar)
            return packing.finish(labels)
    except OSError as error:
        raise write_error(output, error, "run it again: it goes on") from error


class _Packing:
    """The shards of a source, whole or still to be made."""

    def __init__(
        self, reader: EncodedReader | RawReader, labels: Labels | None, output: Path, size: int, prepared: bool
    ) -> None:
        self._prepared = prepared
        self._reader, self._labels, self._output, self._size = reader, labels, output, size
        self._count = -(-len(reader) // size)
        found = (self._whole(number) for number in range(self._count))
        self._records: dict[int, dict[str, Any]] = {n: one for n, one in enumerate(found) if one is not None}
        self._former = len(self._records)
        task_bytes = 1 if isinstance(reader, EncodedReader) else int(np.prod(reader.native_shape))
        self._task_images = max(1, min(_TASK_IMAGES, _TASK_BYTES // task_bytes))

    def run(self, pool: EncodePool, workers: int, bar: Bar) -> None:
        """Makes the shards that are missing."""
        done = sum(self._positions(number) for number in self._records)
        bar.update(done)

        def work(task: tuple[int, range, Pixels | None]) -> tuple[int, range, list[Encoded]]:
            number, positions, rows = task
            return number, positions, self._encoded(pool, positions, rows)

        results = ordered_stream(work, self._tasks(), workers)
        for number, of_shard in groupby(results, key=lambda result: result[0]):
            writer = _Shard(self._reader, self._labels)
            with whole_file(self._output / _name(number), durable=True) as temporary:
                with open(temporary, "wb") as file:
                    for _, positions, images in of_shard:
                        file.write(writer.add(positions, images))
                        done += len(positions)
                        bar.update(done)
                    file.write(writer.end())
                self._write(number, writer.record())

    def finish(self, labels: Labels | None) -> PackedShards:
        """Describes the whole set beside its shards.

        Args:
            labels: classes of the images; None for none.

        Raises:
            UserError: no image can be read.
        """
        records = [self._records[number] for number in range(self._count)]
        sizes = {tuple(size) for record in records for size in record["sizes"]}
        total = sum(record["images"] for record in records)
        faults = self._reader.faults if isinstance(self._reader, EncodedReader) else []
        rejected = [(f"{brief(self._reader.location)}/{name}", reason) for name, reason in faults]
        rejected += [(name, reason) for record in records for name, reason in record["rejected"]]
        if not total:
            name, reason = rejected[0]
            raise UserError(f"{shown(self._reader.location)}: none of its images can be read, first {name} ({reason})")
        alike = len({size[:2] for size in sizes}) == 1
        width, height = next(iter(sizes))[:2]
        about: dict[str, Any] = {"format": FORMAT, "version": VERSION, "images": total, "rejected": len(rejected)}
        about |= {
            "prepared": self._prepared,
            "channels": max(size[2] for size in sizes),
            "height": height if alike else None,
        }
        about |= {"width": width if alike else None, "class_names": None if labels is None else labels.names}
        shards = [
            {"name": _name(number), **{key: record[key] for key in ("images", "bytes", "sha256")}}
            for number, record in enumerate(records)
        ]
        if rejected:
            _write_json(self._output / REJECTED, [{"name": name, "reason": reason} for name, reason in rejected])
        _write_json(self._output / ABOUT, about | {"shards": shards})
        shutil.rmtree(self._output / PACKING)
        num_bytes = sum(record["bytes"] for record in records)
        return PackedShards([one["name"] for one in shards], total, num_bytes, rejected, self._former)

    def _positions(self, number: int) -> int:
        return min(self._size, len(self._reader) - number * self._size)

    def _tasks(self) -> Iterator[tuple[int, range, Pixels | None]]:
        """Number of the shard, positions and, of plain pixels, rows of each task, in order."""
        if isinstance(self._reader, EncodedReader):
            for number in range(self._count):
                if number not in self._records:
                    first = number * self._size
                    for start in range(first, first + self._positions(number), self._task_images):
                        stop = min(start + self._task_images, first + self._positions(number))
                        yield number, range(start, stop), None
            return
        start = 0
        for rows in self._reader.rows():
            while len(rows):
                number, offset = divmod(start, self._size)
                count = min(self._task_images, self._size - offset, len(rows))
                if number not in self._records:
                    yield number, range(start, start + count), rows[:count]
                start, rows = start + count, rows[count:]

    def _encoded(self, pool: EncodePool, positions: range, rows: Pixels | None) -> list[Encoded]:
        if rows is not None:
            return pool.encode([np.ascontiguousarray(row).tobytes() for row in rows])
        assert isinstance(self._reader, EncodedReader)
        found: list[Encoded | None] = []
        contents: list[bytes] = []
        for position in positions:
            try:
                with self._reader.turn(position):
                    contents.append(self._reader.files.read(position))
                found.append(None)
            except BadImage as error:
                found.append(Encoded.bad(error))
        encoded = iter(pool.encode(contents))
        return [one or next(encoded) for one in found]

    def _whole(self, number: int) -> dict[str, Any] | None:
        """The record of a shard that is there; None where it has to be made."""
        try:
            record = json.loads((self._output / PACKING / f"{number:06}.json").read_text("utf-8"))
            size = (self._output / _name(number)).stat().st_size
            return record if size == record["bytes"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, number: int, record: dict[str, Any]) -> None:
        """Keeps the record of a shard; it is on the disk before the shard has its name."""
        _write_json(self._output / PACKING / f"{number:06}.json", record)
        self._records[number] = record


class _Shard:
    """The bytes of a shard, and the facts about it."""

    def __init__(self, reader: EncodedReader | RawReader, labels: Labels | None) -> None:
        self._reader, self._labels = reader, labels
        self._sizes: Counter[tuple[int, int, int]] = Counter()
        self._rejected: list[tuple[str, str]] = []
        self._bytes, self._digest = 0, hashlib.sha256()

    def add(self, positions: range, images: list[Encoded]) -> bytes:
        """Returns the members of images by their positions."""
        parts: list[bytes] = []
        for position, image in zip(positions, images, strict=True):
            if (reason := image.reason) is not None:
                name = f"image {position:,}"
                if isinstance(self._reader, EncodedReader):
                    name = full_name(self._reader.files, position)
                self._rejected.append((name, reason))
                continue
            self._sizes[image[1:4]] += 1
            members = [(f"{position:09}.{image.ending}", image.content)]
            if self._labels is not None:
                members.append((f"{position:09}.cls", str(int(self._labels.values[position])).encode()))
            for name, content in members:
                parts += [header(name, len(content)), content, padding(len(content))]
        return self._counted(b"".join(parts))

    def end(self) -> bytes:
        """Returns the end of the archive."""
        return self._counted(END)

    def record(self) -> dict[str, Any]:
        """Returns the facts about the shard as JSON takes them."""
        facts: dict[str, Any] = {"images": self._sizes.total(), "sizes": sorted(self._sizes), "bytes": self._bytes}
        return facts | {"sha256": self._digest.hexdigest(), "rejected": self._rejected}

    def _counted(self, content: bytes) -> bytes:
        self._digest.update(content)
        self._bytes += len(content)
        return content


def _claim(output: Path, settings: dict[str, Any], lock: FolderLock) -> None:
    """Takes a new or empty folder, or one in which the same packing was broken off.

    Raises:
        UserError: it holds something else.
    """
    path = output / PACKING / _SETTINGS
    if output.exists() and not output.is_dir():
        raise UserError(f"{shown(output)}: {_FORMER}")
    output.mkdir(parents=True, exist_ok=True)
    lock.acquire(output)
    if path.is_file():
        try:
            former = parse_json(path.read_bytes())
        except DocumentError:
            former = None
        if former != settings:
            raise UserError(
                f"{shown(output)}: another packing was broken off in it, of other images or with other settings",
                "repeat that one, or remove it",
            )
        return
    if any(one.name not in (PACKING, ".lock") for one in output.iterdir()):
        raise UserError(f"{shown(output)}: {_FORMER}")
    path.parent.mkdir(exist_ok=True)
    _write_json(path, settings)


def _write_json(path: Path, document: Any) -> None:
    with whole_file(path, durable=True) as temporary:
        temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")


def _name(number: int) -> str:
    return f"shard-{number:06}.tar"


def _digest(labels: Labels | None) -> str | None:
    if labels is None:
        return None
    digest = hashlib.sha256(labels.values.astype("<i8").data)
    digest.update(json.dumps(labels.names).encode())
    return digest.hexdigest()
