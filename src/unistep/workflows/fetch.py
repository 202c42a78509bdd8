"""`unistep.fetch_dataset`: the official files of a dataset, in the user's cache."""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from urllib.parse import urlsplit

from unistep.arguments import plain_arguments
from unistep.errors import UserError
from unistep.files import is_full, write_error
from unistep.text import html_table, shown

if TYPE_CHECKING:
    from unistep.data.published import Published, PublishedFile

TIMEOUT = 10.0  # seconds for a connection, and for each read
_ATTEMPTS = 3  # at a mirror, in a row without progress
_PROGRESS = 1 << 20  # bytes
_SMALLER = "free the disk, or have the cache elsewhere by the environment variable XDG_CACHE_HOME"
_OTHER_MEANS = "or download the file by other means and give its path as data"


@dataclass(frozen=True, repr=False)
class FetchedDataset:
    """A dataset whose files are in the cache.

    Args:
        name: name of the dataset.
        title: data and source in a few words.
        files: the files.
        sources: names by which its images are opened, as "cifar10"; those of bundled images are left out.
        num_bytes: bytes of all files.
    """

    name: str
    title: str
    files: tuple[Path, ...]
    sources: tuple[str, ...]
    num_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        return vars(self) | {"files": [str(file) for file in self.files], "sources": list(self.sources)}

    def rows(self) -> list[tuple[str, str]]:
        """Returns what was fetched, the names of the data, and the files."""
        data = ", ".join(self.sources) or "mnist, mnist-test (bundled, the same images)"
        sizes = [(str(file), f"{file.stat().st_size / 1e6:,.1f} MB") for file in self.files]
        return [(self.name, self.title), ("data", data), *sizes]

    def __repr__(self) -> str:
        return f"FetchedDataset({self.name}: {', '.join(self.sources) or 'bundled'}; {self.num_bytes / 1e6:,.1f} MB)"

    def _repr_html_(self) -> str:
        return html_table("fetched", self.rows())


@plain_arguments()
def fetch_dataset(name: Literal["cifar10", "mnist", "fashion-mnist"], *, progress: bool = True) -> FetchedDataset:
    """Fetches the official files of a dataset into the cache, and checks them against their SHA-256 sums.

    Files that are there are not fetched again, and a download that was interrupted goes on where it stopped. The
    images are then data by their names: cifar10 and cifar10-test, fashion-mnist and fashion-mnist-test. MNIST is
    bundled; its files are for other programs. The cache is $XDG_CACHE_HOME/unistep, or ~/.cache/unistep where that
    variable is not set.

    Args:
        name: dataset: cifar10 (170 MB), mnist (12 MB) or fashion-mnist (31 MB).
        progress: show a progress bar on a terminal.

    Returns:
        The files, and the names of the data.

    Raises:
        UserError: no mirror can be reached, files are not the official ones, or the disk is full.

    Example:
        >>> import unistep
        >>> unistep.fetch_dataset("fashion-mnist")  # doctest: +SKIP
        FetchedDataset(fashion-mnist: fashion-mnist, fashion-mnist-test; 30.9 MB)
        >>> unistep.open_dataset("fashion-mnist")  # doctest: +SKIP
        ImageDataset(60,000 grey images of 28x28, 10 classes)
    """
    from unistep.data.published import PUBLISHED

    return fetch(PUBLISHED[name], progress=progress)


def fetch(dataset: "Published", *, progress: bool = True) -> FetchedDataset:
    """Fetches the files of a row of the table; see `fetch_dataset`.

    Raises:
        UserError: no mirror can be reached, files are not the official ones, or the disk is full.
    """
    from unistep.runtime.lock import FolderLock

    folder = dataset.folder
    paths = tuple(folder / file.name for file in dataset.files)
    missing = [file for file, path in zip(dataset.files, paths, strict=True) if not file.is_at(path)]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(folder, error, "make it writable") from None
        with FolderLock("fetch") as lock:
            lock.acquire(folder)
            for file in missing:
                _fetch_file(dataset, file, folder / file.name, progress)
    num_bytes = sum(file.num_bytes for file in dataset.files)
    return FetchedDataset(
        dataset.name, f"{dataset.title}: {dataset.description}", paths, tuple(dataset.readers), num_bytes
    )


def _fetch_file(dataset: "Published", file: "PublishedFile", path: Path, progress: bool) -> None:
    """Fetches one file from the first mirror that has it."""
    from huggingface_hub.utils import tqdm

    from unistep.runtime.interrupt import Interrupted

    part = path.with_name(f"{path.name}.part")
    reasons: list[str] = []
    try:
        with part.open("r+b" if part.exists() else "w+b") as target:
            there = _start(target, file)
            _check_space(part, file.num_bytes - there)
            with tqdm(
                total=file.num_bytes,
                initial=there,
                unit="B",
                unit_scale=True,
                desc=file.name,
                disable=None if progress else True,
            ) as bar:
                for mirror in dataset.mirrors:
                    reason = _from_mirror(f"{mirror}{file.name}", file, part, target, bar.update)
                    if not reason:
                        break
                    reasons.append(f"{urlsplit(mirror).hostname} {reason}")
        if len(reasons) == len(dataset.mirrors):
            again = "try again, which goes on where it stopped" if part.stat().st_size else "try again"
            if not part.stat().st_size:
                part.unlink()
            raise UserError(
                f"{file.name} of {dataset.name} cannot be fetched: {'; '.join(reasons)}", f"{again}, {_OTHER_MEANS}"
            )
        os.replace(part, path)
    except OSError as error:
        if is_full(error):  # what came is of no use while the disk is full
            part.unlink(missing_ok=True)
        raise write_error(path, error, _SMALLER, need=file.num_bytes) from None
    except (Interrupted, KeyboardInterrupt) as stopped:
        stopped.add_note("what came is kept, and the same command goes on where it stopped")
        raise


def _start(target: BinaryIO, file: "PublishedFile") -> int:
    """Brings a file that was begun to its end, or empties one that is too long; returns its length."""
    there = target.seek(0, os.SEEK_END)
    if there > file.num_bytes:
        target.truncate(0)
        there = target.seek(0)
    return there


def _from_mirror(url: str, file: "PublishedFile", part: Path, target: BinaryIO, show: Any) -> str:
    """Appends what is missing from one mirror; returns the reason why that was not possible, empty where it was."""
    from unistep.formats.hub.transfer import SizeError, read_file

    attempt, emptied = 1, False
    while True:
        before = target.seek(0, os.SEEK_END)
        reason = ""
        try:
            if before < file.num_bytes:
                read_file(url, {}, TIMEOUT, target, file.num_bytes, show)
        except SizeError as error:
            reason = f"sends {error}"
            if "more" in str(error):
                _empty(target, show)
                return reason
        except Exception as error:
            if isinstance(error, OSError) and is_full(error):
                raise
            reason, again = _explained(error)
            if not again:
                return reason
        target.flush()
        if not reason:
            if file.is_at(part):
                return ""
            # The beginning may be of another file; the whole of it is fetched once.
            _empty(target, show)
            if emptied or not before:
                return "sends another file (its SHA-256 sum is not the official one)"
            emptied = True
            continue
        if target.seek(0, os.SEEK_END) - before > _PROGRESS:
            attempt = 0
        if attempt >= _ATTEMPTS:
            return reason
        time.sleep(attempt)
        attempt += 1


def _explained(error: Exception) -> tuple[str, bool]:
    """The reason of a failure in words, and whether it may pass."""
    from unistep.formats.hub.transfer import AnswerError, SilentError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"answers with status {status}", status >= 500 or status == 429
    if isinstance(error, SilentError):
        return "does not answer", False
    if isinstance(error, AnswerError):
        return f"answers by {shown(error)[:100]}", False
    broken = any(word in type(error).__name__ for word in ("Protocol", "Read", "Chunked", "Incomplete"))
    return ("breaks off" if broken else f"cannot be reached ({type(error).__name__})"), broken


def _empty(target: BinaryIO, show: Any) -> None:
    show(-target.seek(0, os.SEEK_END))
    target.seek(0)
    target.truncate()


def _check_space(part: Path, need: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < need:
        raise UserError(
            f"cannot write {part.parent}: {need / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB free", _SMALLER
        )
