"""Model folders of the Hugging Face Hub, fetched into its cache.

`huggingface_hub` does the transfer and keeps the cache, which its other users share. The files of a model folder are
fetched, with one set of weights. Beyond the library:

- Contents are compared with the hashes that the Hub states (sha256 of large files, git's sha1 of small ones), where
  the library compares sizes. A file that differs is deleted.
- A revision is recorded in the cache when all its files are there: an interrupted fetch is no model, and
  the last whole one opens without a network.
- A failure is one line with its remedy, and a Hub that does not answer is given up.
"""

import hashlib
import importlib.metadata
import logging
import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unistep.errors import UserError
from unistep.formats.hub.address import HubAddress, hub_address
from unistep.formats.hub.errors import OTHER_CACHE, BrokenOff, Damaged, Refused, Unreachable, explained
from unistep.formats.model_folder.files import (
    CARD,
    INDEX,
    REQUIRED,
    check_components,
    choose_weights,
    is_whole,
    shards_of,
)

_LOG = logging.getLogger(__name__)

_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".pkl")

TIMEOUT = 10.0  # seconds for an answer
_ATTEMPTS = 3  # to fetch a file, each of which resumes a broken connection several times


def fetch_folder(
    model_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    variant: str | None = None,
) -> Path:
    """Fetches a model folder from the Hub, or takes it from the cache.

    Of the weights one set is fetched: safetensors where there are any, else .bin, in one file or in shards. Without
    a network, a model that the cache holds whole is used. The Hub is that of the environment variable HF_ENDPOINT.

    Args:
        model_id: `owner/name`.
        revision: branch, tag or commit; None is main.
        token: access token of private and gated models; None is that of HF_TOKEN or of `hf auth login` if there is any,
            True the same, which must exist, False none.
        cache_dir: folder of the cache; None is the Hub's own (HF_HUB_CACHE, HF_HOME).
        local_files_only: take the model from the cache, and download nothing.
        variant: variant of the weights, such as "fp16"; None is the plain weights.

    Returns:
        The folder in the cache, which must not be changed.

    Raises:
        UserError: no such model, revision or variant; no permission; not a model folder; no network and not in the
            cache; a broken or damaged download; a cache that cannot be written.
    """
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_]+", variant):
        raise UserError(f"{variant!r} is no name of a variant, as fp16", field="variant")
    address = hub_address(model_id, revision, token, cache_dir)
    with explained(address):
        offline = is_offline()
        # A commit never changes: where it is whole there is nothing to ask.
        if local_files_only or offline or re.fullmatch(r"[0-9a-f]{40}", address.revision):
            if folder := _cached_folder(address, variant):
                return folder
        if local_files_only or offline:
            weights = f" with weights of variant {variant}" if variant else ""
            remedy = "unset HF_HUB_OFFLINE" if offline else "leave out `local_files_only`"
            raise UserError(f"{address} is not whole in the cache {address.cache}{weights}; {remedy} to fetch it")
        try:
            return _fetch(address, variant)
        except Refused as error:
            if not (folder := _cached_folder(address, variant)):
                raise
            if not isinstance(error, Unreachable):
                raise UserError(f"{error}; the copy in the cache opens with `local_files_only`") from None
            _LOG.warning("%s; using the copy in the cache", error)
            return folder


@dataclass(frozen=True)
class _File:
    """A file on the Hub.

    Args:
        size: bytes; None if the Hub lists none.
        digest: sha256 (64 digits) or git's sha1 (40); None if the Hub lists none.
    """

    size: int | None
    digest: str | None


def _fetch(address: HubAddress, variant: str | None) -> Path:
    with explained(address):
        commit, files = _listing(address)
    if missing := [name for name in REQUIRED if name not in files]:
        checkpoints = sorted(name for name in files if name.endswith(_CHECKPOINTS))
        remedy = f"download {checkpoints[0]} and give its path" if checkpoints else "check the name"
        raise UserError(f"{address} is not the folder of a consistency model: it has no {missing[0]}; {remedy}")
    weights = choose_weights(files, variant, address)
    small = [*REQUIRED, *([CARD] if CARD in files else [])]
    paths = [_get(address, commit, name, files[name]) for name in small]
    check_components(paths[0], address)
    path = _get(address, commit, weights, files[weights])
    if weights.endswith(".json"):
        shards = shards_of(path, address)
        if missing := [name for name in shards if name not in files]:
            raise UserError(f"{address} is incomplete: it has no {missing[0]}; tell the model's owner")
        for name in shards:
            _get(address, commit, name, files[name])
    folder = paths[0].parent
    _record(address.revision, folder)
    return folder


def _listing(address: HubAddress) -> tuple[str, dict[str, _File]]:
    """The commit of the revision, and its files."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = api_of(address).model_info(
            address.model_id, revision=address.revision, files_metadata=True, timeout=TIMEOUT
        )
        files = {}
        for file in info.siblings or []:
            digest = file.lfs.sha256 if file.lfs else file.blob_id
            files[str(file.rfilename)] = _File(
                None if file.size is None else int(file.size), None if digest is None else str(digest)
            )
        if re.fullmatch(r"[0-9a-f]{40}", info.sha):
            return info.sha, files
    except HfHubHTTPError:
        raise
    except (ValueError, AttributeError, KeyError, TypeError):
        pass  # a portal's page of welcome, a proxy's apology
    raise Unreachable(
        f"{address.host} does not answer as the Hub does; a portal or proxy may be in between, or HF_ENDPOINT is wrong"
    )


def _get(address: HubAddress, commit: str, name: str, file: _File) -> Path:
    """The path of a file of a commit, which is fetched if it is not in the cache."""
    path = _cached_file(address, name, commit)
    # Its content was compared when it came.
    if path and file.size in (None, path.stat().st_size):
        return path
    if path:
        _discard(path)
    place = next(folder for folder in (address.cache, *address.cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < (file.size or 0):
        sizes = f"{(file.size or 0) / 1e6:,.0f} MB, of which {address.cache} has {free / 1e6:,.0f}"
        raise UserError(f"{name} of {address} takes {sizes}; {OTHER_CACHE}")
    attempt, anew = 1, False
    while True:
        try:
            with explained(address, name):
                return _download(address, commit, name, file, anew)
        except BrokenOff as error:
            if attempt == _ATTEMPTS:
                raise
            anew = isinstance(error, Damaged)
        time.sleep(attempt)
        attempt += 1


def _download(address: HubAddress, commit: str, name: str, file: _File, anew: bool) -> Path:
    from huggingface_hub import hf_hub_download

    path = Path(
        hf_hub_download(
            address.model_id,
            name,
            revision=commit,
            token=address.token,
            cache_dir=address.cache,
            endpoint=address.endpoint,
            force_download=anew,
            etag_timeout=TIMEOUT,
            library_name="unistep",
            library_version=importlib.metadata.version("unistep"),
        )
    )
    try:
        # Where the Hub lists no hash the name of the blob in the cache is one: the ETag.
        stated = file.digest or Path(os.path.realpath(path)).name
        damaged = re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", stated) and stated != _digest(path, len(stated))
    except BaseException:
        _discard(path)
        raise
    if damaged:
        _discard(path)
        raise Damaged(f"{name} of {address} came damaged: its hash is not the one stated; deleted, try again")
    return path


def _record(revision: str, folder: Path) -> None:
    """Records in the cache, as the library does, the commit of a revision."""
    ref = folder.parents[1] / "refs" / revision
    temporary = ref.with_name(f"{ref.name}.{uuid.uuid4().hex[:8]}.tmp")
    # A cache that is read-only serves nevertheless.
    with suppress(OSError):
        if revision == folder.name or (ref.is_file() and ref.read_text() == folder.name):
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(folder.name)
            os.replace(temporary, ref)
        finally:
            temporary.unlink(missing_ok=True)


def _cached_folder(address: HubAddress, variant: str | None) -> Path | None:
    """The folder in the cache; None if it is not whole there."""
    path = _cached_file(address, INDEX, address.revision)
    return path.parent if path and is_whole(path.parent, variant) else None


def _cached_file(address: HubAddress, name: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(address.model_id, name, cache_dir=address.cache, revision=revision)
    return Path(path) if isinstance(path, str) else None


def _discard(path: Path) -> None:
    """Deletes a file of the cache and the blob that it points to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _digest(path: Path, digits: int) -> str:
    """A file's sha256 (64 digits), or its sha1 as a blob of git (40)."""
    if digits == 64:
        start = hashlib.sha256()
    else:
        start = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: start).hexdigest()


def api_of(address: HubAddress) -> Any:
    """Makes the client of the Hub for an address."""
    from huggingface_hub import HfApi

    return HfApi(
        endpoint=address.endpoint,
        token=address.token,
        library_name="unistep",
        library_version=importlib.metadata.version("unistep"),
    )


def is_offline() -> bool:
    """Returns whether HF_HUB_OFFLINE is set, or was when the library was imported."""
    from huggingface_hub import constants

    now = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return now or bool(constants.HF_HUB_OFFLINE)
