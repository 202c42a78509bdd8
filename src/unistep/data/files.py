"""The image files of a folder or a `.zip`, listed in one order and read as bytes."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from unistep.data.prepare import SUFFIXES
from unistep.data.reader import BadImage
from unistep.errors import UserError
from unistep.text import shown

DATASET_JSON = "dataset.json"

_LARGEST_FILE = 1 << 30  # an encoded image of a gibibyte is no training image, but may be a bomb


@runtime_checkable
class ImageFiles(Protocol):
    """Image files by position.

    Attributes:
        location: source as the user wrote it.
        names: names relative to the source, with forward slashes, sorted as EDM sorts them.
        sizes: bytes of each file.
    """

    location: str
    names: list[str]
    sizes: list[int]

    def read(self, index: int, limit: int | None = None) -> bytes:
        """Reads a file; several threads may call it.

        Args:
            index: position of the file.
            limit: largest number of bytes, from the start; None is all.

        Raises:
            BadImage: the file cannot be read.
        """
        ...

    def dataset_json(self) -> bytes | None:
        """Returns the content of `dataset.json`; None if there is none."""
        ...

    def fingerprint(self) -> str:
        """Returns a text that changes when a file does."""
        ...


def full_name(files: ImageFiles, index: int) -> str:
    """The name of a file for messages, with the folder or archive it lies in."""
    return shown(PurePosixPath(files.location, files.names[index]))


def is_image_name(name: str) -> bool:
    """Returns whether a relative name is that of an image; hidden files and macOS' files in archives are none."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in SUFFIXES


class FolderFiles:
    """The images in a folder and its subfolders, links to folders included.

    Args:
        root: the folder.
        location: source as the user wrote it.

    Raises:
        UserError: the folder cannot be listed.
    """

    def __init__(self, root: Path, location: str) -> None:
        self.location = location
        self._root = root
        found: list[tuple[str, int, int]] = []
        for name in self._walk():
            try:
                status = os.stat(root / name)
            except OSError:
                found.append((name, 0, 0))  # a dangling link, say: reading it will give the reason
                continue
            if stat.S_ISREG(status.st_mode):
                found.append((name, status.st_size, status.st_mtime_ns))
        found.sort()
        self.names = [name for name, _, _ in found]
        self.sizes = [size for _, size, _ in found]
        self._times = [time for _, _, time in found]

    def read(self, index: int, limit: int | None = None) -> bytes:
        if self.sizes[index] > _LARGEST_FILE:
            raise BadImage(f"it is a file of {self.sizes[index]:,} bytes")
        try:
            with open(self._root / self.names[index], "rb") as file:
                return file.read() if limit is None else file.read(limit)
        except OSError as error:
            raise BadImage(error.strerror or type(error).__name__) from error

    def dataset_json(self) -> bytes | None:
        path = self._root / DATASET_JSON
        if not path.is_file():
            return None
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{shown(path)}: it cannot be read ({error.strerror})") from error

    def fingerprint(self) -> str:
        # The place counts too: other files may have the same names, sizes and times.
        entries = zip(self.names, self.sizes, self._times, strict=True)
        return _digest(f"folder {self._root.resolve()}", (f"{name}\0{size}\0{time}" for name, size, time in entries))

    def _walk(self) -> Iterable[str]:
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
            subfolders.sort()
            for name in files:
                relative = (Path(folder) / name).relative_to(self._root).as_posix()
                if is_image_name(relative):
                    yield relative


class ZipFiles:
    """The images in a `.zip`, which is never unpacked to disk.

    Args:
        path: the file.
        location: source as the user wrote it.

    Raises:
        UserError: the file is no zip archive.
    """

    def __init__(self, path: Path, location: str) -> None:
        self.location = location
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
            raise UserError(f"{shown(location)}: it is damaged or no zip archive ({shown(error)})") from error
        # A ZipFile counts its open members without a lock.
        self._lock = threading.Lock()
        members = {member.filename: member for member in self._archive.infolist() if not member.is_dir()}
        self.names = sorted(name for name in members if is_image_name(name))
        self._members = [members[name] for name in self.names]
        self.sizes = [member.file_size for member in self._members]
        self._dataset_json = members.get(DATASET_JSON)

    def read(self, index: int, limit: int | None = None) -> bytes:
        member = self._members[index]
        if member.file_size > _LARGEST_FILE:
            raise BadImage(f"it unpacks to {member.file_size:,} bytes")
        try:
            return self._read(member, limit)
        except Exception as error:  # zipfile and each decompressor have exceptions of their own
            raise BadImage(f"it cannot be unpacked: {shown(error)}") from error

    def dataset_json(self) -> bytes | None:
        if self._dataset_json is None:
            return None
        try:
            return self._read(self._dataset_json, None)
        except Exception as error:
            name = shown(PurePosixPath(self.location, DATASET_JSON))
            raise UserError(f"{name}: it cannot be unpacked ({shown(error)})") from error

    def fingerprint(self) -> str:
        return _digest("zip", (f"{member.filename}\0{member.file_size}\0{member.CRC}" for member in self._members))

    def _read(self, member: zipfile.ZipInfo, limit: int | None) -> bytes:
        with self._lock, self._archive.open(member) as file:
            return file.read() if limit is None else file.read(limit)


def _digest(kind: str, entries: Iterable[str]) -> str:
    digest = hashlib.sha256(kind.encode("utf-8", "backslashreplace"))
    for entry in entries:
        digest.update(b"\n" + entry.encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
