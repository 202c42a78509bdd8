"""Files that are published elsewhere under a known hash: downloaded once, whole, and checked at every use.

A download counts only with the published SHA-256, at its arrival and whenever it is opened again. It is written to a
temporary name and renamed when it is complete, so that one broken off is never taken for the file.
"""

import contextlib
import hashlib
import http.client
import os
import shutil
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.runtime.progress import reading_bar

_TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class PublishedFile:
    """A file that can be downloaded.

    Args:
        name: name of the file in the cache.
        url: address of the file.
        sha256: SHA-256 of the content, 64 hexadecimal digits.
        key: parameter that takes the path of the user's own copy.
        instead: alternative to the file, the end of a message; empty for none.
    """

    name: str
    url: str
    sha256: str
    key: str
    instead: str = ""

    @property
    def remedy(self) -> str:
        """The remedy for a missing file, the end of a message."""
        return f"give the path of {self.url} as {self.key}"


def fetch(published: PublishedFile, folder: Path, *, needed: Sequence[PublishedFile] = ()) -> Path:
    """The path of a published file, which is downloaded if it is missing.

    Args:
        published: the file.
        folder: folder of downloads.
        needed: all files of the same purpose, which the message without a network names at once; empty for this one.

    Raises:
        UserError: the file cannot be downloaded or written, or is damaged.
    """
    path = folder / published.name
    if os.path.lexists(path):
        check_regular_file(path, f"delete it to have it downloaded again, or {published.remedy}")
        if sha256_of(path) != published.sha256:
            raise UserError(f"{path} is damaged: its SHA-256 is not the published one; delete it to download it again")
        return path
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(published, temporary)
        if sha256_of(temporary) != published.sha256:
            raise UserError(
                f"{published.url} did not give the published file: its SHA-256 is another; try again, or "
                f"{published.remedy}"
            )
        os.replace(temporary, path)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error or type(error).__name__
        files = needed or (published,)
        urls, keys = (" and ".join(words) for words in zip(*((file.url, file.key) for file in files), strict=True))
        instead = f", or {published.instead}" if published.instead else ""
        raise UserError(
            f"cannot download {published.url} to {folder} ({_line(reason)}); fetch {urls} elsewhere and give "
            f"{'the path' if len(files) == 1 else 'their paths'} as {keys}{instead}"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def cache_folder(purpose: str, cache_dir: str | Path | None = None) -> Path:
    """The folder of the downloads of a purpose.

    Args:
        purpose: name of a folder.
        cache_dir: the folder itself; None is `$XDG_CACHE_HOME/unistep/PURPOSE`, or `~/.cache/unistep/PURPOSE` if that
            variable is not set.
    """
    if cache_dir is not None:
        return expanded(cache_dir)
    root = os.environ.get("XDG_CACHE_HOME")
    return expanded(root or "~/.cache") / "unistep" / purpose


def expanded(path: str | Path) -> Path:
    """The path with the home of a leading `~`; unchanged if there is no such user."""
    return Path(os.path.expanduser(path))  # the method of Path raises there


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(published: PublishedFile, path: Path) -> None:
    with urllib.request.urlopen(published.url, timeout=_TIMEOUT) as response, path.open("wb") as target:
        length = int(response.headers.get("Content-Length") or 0)
        with reading_bar(response, length, published.name) as source:
            shutil.copyfileobj(source, target, 1 << 20)


def _line(reason: object) -> str:
    return (str(reason) or type(reason).__name__).splitlines()[0]
