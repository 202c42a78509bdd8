"""The part of the Hub's cache that belongs to a model, laid out as `huggingface_hub` does, which shares it.

    models--owner--name/blobs/HASH                      contents
    models--owner--name/snapshots/COMMIT/unet/...       links to them
    models--owner--name/refs/main                       the commit of a revision

Nothing is written or deleted outside the cache, wherever links in it lead.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from unistep.errors import UserError
from unistep.formats.hub.address import HubAddress


def cached_file(address: HubAddress, name: str, revision: str) -> Path | None:
    """Returns the path of a file of a revision; None if the cache does not hold it."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(address.model_id, name, cache_dir=address.cache, revision=revision)
    return Path(path) if isinstance(path, str) else None


def is_inside(address: HubAddress, path: Path) -> bool:
    """Returns whether a path, with all links followed, lies in the cache."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(address.cache))


def has_blob(address: HubAddress, digest: str) -> bool:
    """Returns whether the cache holds the content with this hash, unharmed."""
    blob = _blobs(address) / digest
    return blob.is_file() and is_inside(address, blob) and digest_of(blob, len(digest)) == digest


@contextmanager
def new_blob(address: HubAddress, digest: str) -> Iterator[tuple[Path, BinaryIO]]:
    """Opens a temporary file among the blobs, which is gone at the end unless it was kept.

    Raises:
        UserError: the place lies outside the cache.
    """
    folder = _made(address, _blobs(address))
    path = folder / f"{digest}.{uuid.uuid4().hex[:8]}.incomplete"
    try:
        with path.open("xb") as file:
            yield path, file
    finally:
        path.unlink(missing_ok=True)


def keep_blob(address: HubAddress, temporary: Path, digest: str) -> None:
    """Puts a whole, checked file in its place; a link there is replaced, not followed."""
    os.replace(temporary, _blobs(address) / digest)


def link_blob(address: HubAddress, digest: str, name: str, commit: str) -> Path:
    """Makes a file of a commit of a blob.

    Returns:
        The path of the file.

    Raises:
        UserError: the place lies outside the cache.
    """
    path = _storage(address) / "snapshots" / commit / name
    folder = _made(address, path.parent)
    blob = _blobs(address) / digest
    temporary = folder / f".{uuid.uuid4().hex[:8]}.tmp"
    try:
        try:
            temporary.symlink_to(os.path.relpath(os.path.realpath(blob), os.path.realpath(folder)))
        except OSError:  # no links there
            shutil.copyfile(blob, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _check_inside(address, path)
    return path


def record_revision(address: HubAddress, commit: str) -> None:
    """Records the commit of the revision."""
    if address.revision == commit:
        return
    ref = _storage(address) / "refs" / address.revision
    # A cache that is read-only serves nevertheless.
    with suppress(OSError):
        if ref.is_file() and ref.read_text() == commit:
            return
        temporary = _made(address, ref.parent) / f"{ref.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            temporary.write_text(commit)
            os.replace(temporary, ref)
        finally:
            temporary.unlink(missing_ok=True)


def digest_of(path: Path, digits: int) -> str:
    """Returns a file's sha256 (64 digits), or its sha1 as a blob of git (40)."""
    if digits == 64:
        start = hashlib.sha256()
    else:
        start = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: start).hexdigest()


def _storage(address: HubAddress) -> Path:
    return address.cache / f"models--{address.model_id.replace('/', '--')}"


def _blobs(address: HubAddress) -> Path:
    return _storage(address) / "blobs"


def _made(address: HubAddress, folder: Path) -> Path:
    _check_inside(address, folder)  # before folders are made elsewhere
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _check_inside(address: HubAddress, path: Path) -> None:
    if not is_inside(address, path):
        raise UserError(f"{path} leads out of the cache {address.cache} by a link; delete the link")
