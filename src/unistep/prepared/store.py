"""Prepared trunks kept on the disk, so that each is made once.

    prepared/KEY/about.json        what it is, how far it differs from eager, and the size of every file
    prepared/KEY/trunk.*           files of the runtime
    prepared/KEY/ends.safetensors  embedding and output head
    prepared/.making/KEY/          lock of the process that makes it, and its unfinished files

KEY is a hash of all that the files depend on. An entry appears whole or not at all: it is made under `.making`, and
renamed when it is complete. Of several processes one makes an entry, the others wait for it; what a killed one left is
deleted by the next. An entry without a trunk records why there is none.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unistep.documents import DocumentError, parse_json
from unistep.errors import UserError
from unistep.files import check_regular_file, sync_folder, write_error
from unistep.runtime.lock import FolderLock

ABOUT = "about.json"
ENDS = "ends.safetensors"
_MAKING = ".making"
_DIGESTS = ".digests.json"
_FORMAT = 1  # raised whenever the same model and runtime would give other files
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """A prepared trunk, or the record that there is none.

    Args:
        folder: folder of the files.
        about: content of about.json.
    """

    folder: Path
    about: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Hash of all that it depends on."""
        return self.folder.name

    @property
    def failure(self) -> str:
        """Reason why there is no trunk; empty where there is one."""
        return str(self.about.get("failure", ""))

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(size for size in self.about.get("files", {}).values() if isinstance(size, int))


def key_of(parts: Mapping[str, Any]) -> str:
    """Returns the key of what depends on `parts`: 40 hexadecimal digits."""
    text = json.dumps({"format": _FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def read_entry(root: Path, key: str) -> Entry | None:
    """Returns an entry; None where there is none, or its files are not those that were written."""
    folder = root / key
    try:
        check_regular_file(folder / ABOUT, "it is made again", most_bytes=_MOST_BYTES)
        about = parse_json((folder / ABOUT).read_bytes())
        files = about["files"] if isinstance(about, dict) else None
        if not isinstance(about, dict) or not isinstance(files, dict):
            return None
        if any(_size(folder / name) != size for name, size in files.items()):
            return None
    except (OSError, KeyError, UserError, DocumentError):
        return None
    return Entry(folder, about)


def entries(root: Path) -> list[Entry]:
    """Returns all whole entries, newest first."""
    try:
        names = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []
    found = [entry for name in names if (entry := read_entry(root, name)) is not None]
    return sorted(found, key=lambda entry: str(entry.about.get("made", "")), reverse=True)


def clear(root: Path) -> int:
    """Deletes all entries, broken and unfinished ones too, except for what a process is making; returns their number.

    Raises:
        UserError: an entry cannot be deleted.
    """
    count = 0
    try:
        for path in sorted(root.iterdir()) if root.is_dir() else ():
            if path.is_dir() and path.name != _MAKING:
                # Renamed first: no reader finds half an entry.
                gone = root / f".{path.name}.old"
                os.replace(path, gone)
                shutil.rmtree(gone)
                count += not path.name.startswith(".")
        (root / _DIGESTS).unlink(missing_ok=True)
    except OSError as error:
        raise write_error(root, error, "make the folder writable") from None
    for work in (root / _MAKING).iterdir() if (root / _MAKING).is_dir() else ():
        with FolderLock("clear the cache") as lock, suppress(UserError, OSError):
            lock.acquire(work)
            shutil.rmtree(work / "new", ignore_errors=True)
    return count


@contextmanager
def making(root: Path, key: str) -> Iterator[Path | None]:
    """The folder to make an entry in, which has its name at the end; None where another process has made it meanwhile.

    Waits while another process makes it. After an error nothing is left.

    Args:
        root: folder of all entries.
        key: key of the entry.

    Raises:
        UserError: the cache cannot be written to.
    """
    work = root / _MAKING / key
    new, target = work / "new", root / key
    with FolderLock("prepare a model") as lock:
        try:
            work.mkdir(parents=True, exist_ok=True)
            _acquire(lock, work)
            if read_entry(root, key) is not None:
                yield None
                return
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                yield new
                for file in new.iterdir():
                    sync_folder(file)
                if target.exists():  # damaged, or read_entry would have taken it
                    shutil.rmtree(target)
                os.replace(new, target)
                sync_folder(root)
            finally:
                shutil.rmtree(new, ignore_errors=True)
        except OSError as error:
            raise write_error(root, error, "set XDG_CACHE_HOME to a folder that is writable") from None


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes about.json into a folder in which all other files are complete."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / ABOUT).write_text(json.dumps({**about, "files": files}, indent=2) + "\n")


def digest_of_files(root: Path, files: list[Path]) -> str:
    """Returns the SHA-256 of the names and contents of files.

    The digest of a file is kept by its place, size and time, so that a model of a gigabyte is read once.

    Args:
        root: folder of all entries, where the digests are kept.
        files: the files.

    Raises:
        UserError: a file cannot be read.
    """
    known = _read_digests(root)
    whole, changed = hashlib.sha256(), False
    for path in files:
        try:
            status = path.stat()
            place = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
            if not isinstance(known.get(place), str):
                with path.open("rb") as file:
                    known[place] = hashlib.file_digest(file, "sha256").hexdigest()
                changed = True
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None
        whole.update(f"{path.name} {known[place]}\n".encode())
    if changed:
        with suppress(OSError):  # without it the files are read again
            root.mkdir(parents=True, exist_ok=True)
            temporary = root / f"{_DIGESTS}.{os.getpid()}.tmp"
            temporary.write_text(json.dumps(dict(list(known.items())[-1000:])))
            os.replace(temporary, root / _DIGESTS)
    return whole.hexdigest()


def _read_digests(root: Path) -> dict[str, Any]:
    try:
        known = parse_json((root / _DIGESTS).read_bytes())
    except (OSError, DocumentError):
        return {}
    return dict(known) if isinstance(known, dict) else {}


def _acquire(lock: FolderLock, work: Path) -> None:
    while True:
        try:
            lock.acquire(work)
        except UserError as busy:
            if "is in use" not in busy.problem:
                raise
            time.sleep(0.1)
        else:
            return


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
