"""The image files of a folder or a `.zip`, listed in one order and read as bytes."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from unistep.data.archive import ArchiveError, open_archive, unpack
from unistep.data.inventory import SPECIAL, is_document_name, is_image_name, passed_over, take_inventory
from unistep.data.names import brief, is_litter, leads_out, normalised
from unistep.data.reader import BadImage
from unistep.errors import UserError
from unistep.text import shown

_LARGEST_FILE = 1 << 28  # an encoded image of 256 MiB is no training image, but may be a bomb
_BLANK_BYTES, _BLANK_RATIO = 16 << 20, 200  # an encoded image is hardly packed further, unless it is large and blank


@runtime_checkable
class ImageFiles(Protocol):
    """Image files by position."""

    @property
    def location(self) -> str:
        """Source as the user wrote it."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Normalised names relative to the source, sorted as EDM sorts them; those of shards as they lie."""
        ...

    @property
    def sizes(self) -> Sequence[int]:
        """Bytes of each file."""
        ...

    @property
    def documents(self) -> tuple[str, ...]:
        """Normalised names of the documents that may hold labels."""
        ...

    @property
    def passed(self) -> dict[str, int]:
        """Number of the files that are passed over, by kind; see `unistep.data.inventory`."""
        ...

    def read(self, index: int, limit: int | None = None) -> bytes:
        """Reads a file; several threads may call it.

        Args:
            index: position of the file.
            limit: largest number of bytes, from the start; None is all.

        Raises:
            BadImage: the file cannot be read.
        """
        ...

    def read_document(self, name: str, most_bytes: int) -> bytes:
        """Reads one of `documents`.

        Args:
            name: its normalised name.
            most_bytes: largest size that makes sense.

        Raises:
            UserError: it is larger, or cannot be read.
        """
        ...

    def fingerprint(self) -> str:
        """Returns a text that changes when a file does."""
        ...


def files_fingerprint(kind: str, paths: Iterable[Path]) -> str:
    """A digest of the places, sizes and times of files.

    Args:
        kind: format of the files.
        paths: files, in order.

    Raises:
        UserError: one cannot be read.
    """
    digest = hashlib.sha256(kind.encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{shown(path)}: it cannot be read ({error.strerror})") from error
        line = f"\n{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
        digest.update(line.encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def full_name(files: ImageFiles, index: int) -> str:
    """The name of a file for messages, with the folder or archive it lies in."""
    return shown_name(files.location, files.names[index])


def shown_name(location: str, name: str) -> str:
    """A name for messages, with the folder or archive it lies in."""
    return shown(PurePosixPath(location, brief(name)))


def passed_over_line(files: ImageFiles) -> str:
    """The count of what is passed over, as `F: 2 images; 8 .heic and 3 without ending were passed over`; empty if none.

    Args:
        files: image files of a source.
    """
    if not files.passed:
        return ""
    count, verb = len(files.names), "was" if sum(files.passed.values()) == 1 else "were"
    images = f"{count:,} image{'s' * (count != 1)}"
    return f"{shown(files.location)}: {images}; {passed_over(files.passed)} {verb} passed over"


class FolderFiles:
    """The images in a folder and its subfolders, links to folders included.

    Args:
        root: the folder.
        location: source as the user wrote it.

    Raises:
        UserError: the folder cannot be listed, or two names differ in their Unicode form alone.
    """

    def __init__(self, root: Path, location: str) -> None:
        self.location = location
        self._root = root
        self._special = 0
        inventory = take_inventory(self._entries(), location)
        self.names = [name for name, _ in inventory.images]
        self.spelled = [spelled for _, (spelled, _, _) in inventory.images]
        """Names as they are spelled in the folder."""
        self.sizes = [size for _, (_, size, _) in inventory.images]
        self._times = [time for _, (_, _, time) in inventory.images]
        self._documents = {name: spelled for name, (spelled, _, _) in inventory.documents.items()}
        self.documents = tuple(self._documents)
        self.passed = dict(inventory.passed) | ({SPECIAL: self._special} if self._special else {})

    def read(self, index: int, limit: int | None = None) -> bytes:
        if self.sizes[index] > _LARGEST_FILE:
            raise BadImage(f"it is a file of {self.sizes[index]:,} bytes")
        try:
            with open(self._root / self.spelled[index], "rb") as file:
                return file.read(_LARGEST_FILE if limit is None else limit)
        except OSError as error:
            raise BadImage(error.strerror or type(error).__name__) from error

    def read_document(self, name: str, most_bytes: int) -> bytes:
        path = self._root / self._documents[name]
        try:
            with open(path, "rb") as file:
                content = file.read(most_bytes + 1)
        except OSError as error:
            raise UserError(f"{shown(path)}: it cannot be read ({error.strerror})") from error
        if len(content) > most_bytes:
            raise _too_large(self, name, path.stat().st_size, most_bytes)
        return content

    def fingerprint(self) -> str:
        # The place counts too: other files may have the same names, sizes and times.
        entries = zip(self.spelled, self.sizes, self._times, strict=True)
        return _digest(f"folder {self._root.resolve()}", (f"{name}\0{size}\0{time}" for name, size, time in entries))

    def _entries(self) -> Iterator[tuple[str, tuple[str, int, int]]]:
        """Spelled name of every file, and spelled name, bytes and time of every image and document."""
        for spelled in self._walk():
            name = normalised(spelled)
            if not (is_image_name(name) or is_document_name(name)):
                yield spelled, (spelled, 0, 0)
                continue
            try:
                status = os.stat(self._root / spelled)
            except OSError:
                yield spelled, (spelled, 0, 0)  # a dangling link, say: reading it will give the reason
                continue
            if stat.S_ISREG(status.st_mode):
                yield spelled, (spelled, status.st_size, status.st_mtime_ns)
            elif is_document_name(name):
                raise UserError(f"{shown(self._root / spelled)} is no file; remove or replace it")
            else:
                self._special += 1

    def _walk(self) -> Iterator[str]:
        def refuse(error: OSError) -> None:
            raise UserError(f"{shown(error.filename)}: the folder cannot be listed ({error.strerror})") from error

        # Links are followed, as class folders often are links; a folder already seen is not entered again.
        seen: set[str] = set()
        for folder, subfolders, files in os.walk(self._root, onerror=refuse, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not is_litter(name))
            for name in filter(is_document_name, subfolders):
                raise UserError(f"{shown(Path(folder, name))} is a folder; remove or rename it")
            for name in files:
                yield (Path(folder) / name).relative_to(self._root).as_posix()


class ZipFiles:
    """The images in a `.zip`, which is never unpacked to disk.

    Args:
        path: the file.
        location: source as the user wrote it.

    Raises:
        UserError: the file is no zip archive, or names in it lead out of it or are there twice.
    """

    def __init__(self, path: Path, location: str) -> None:
        self.location = location
        try:
            self._archive = open_archive(path)
        except ArchiveError as error:
            raise UserError(f"{shown(location)}: it is damaged or no zip archive ({error})") from error
        # A ZipFile counts its open members without a lock.
        self._lock = threading.Lock()
        inventory = take_inventory(self._entries(), location)
        self.names = [name for name, _ in inventory.images]
        self._members = [member for _, member in inventory.images]
        self.sizes = [member.file_size for member in self._members]
        self._documents = inventory.documents
        self.documents = tuple(self._documents)
        self.passed = inventory.passed

    def read(self, index: int, limit: int | None = None) -> bytes:
        member = self._members[index]
        large = member.file_size > _BLANK_BYTES and member.file_size > _BLANK_RATIO * member.compress_size
        if member.file_size > _LARGEST_FILE or large:
            raise BadImage(f"it unpacks to {member.file_size:,} bytes")
        try:
            with self._lock:
                return unpack(self._archive, member, limit)
        except ArchiveError as error:
            raise BadImage(f"it cannot be unpacked: {error}") from error

    def read_document(self, name: str, most_bytes: int) -> bytes:
        member = self._documents[name]
        if member.file_size > most_bytes:
            raise _too_large(self, name, member.file_size, most_bytes)
        try:
            with self._lock:
                return unpack(self._archive, member)
        except ArchiveError as error:
            raise UserError(f"{shown_name(self.location, name)}: it cannot be unpacked ({error})") from error

    def fingerprint(self) -> str:
        return _digest("zip", (f"{member.filename}\0{member.file_size}\0{member.CRC}" for member in self._members))

    def _entries(self) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        for member in self._archive.infolist():
            if member.filename.endswith(("/", "\\")):
                continue
            if leads_out(member.filename):
                raise UserError(
                    f"{shown(self.location)}: its file {brief(member.filename)} leads out of the archive; pack the"
                    " images anew, by names within their folder"
                )
            yield member.filename, member


def _too_large(files: ImageFiles, name: str, size: int, most_bytes: int) -> UserError:
    return UserError(
        f"{shown_name(files.location, name)}: it has {size:,} bytes, more than the {most_bytes:,} that make sense for"
        f" {len(files.names):,} images; it belongs to other images, or leave labels unread with `use_labels=False`"
    )


def _digest(kind: str, entries: Iterable[str]) -> str:
    digest = hashlib.sha256(kind.encode("utf-8", "backslashreplace"))
    for entry in entries:
        digest.update(b"\n" + entry.encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
