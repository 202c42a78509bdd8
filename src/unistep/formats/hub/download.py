"""Model folders of the Hugging Face Hub, fetched into its cache.

`huggingface_hub` gives clients, tokens and errors, and its other users share the cache. The files of a model folder are
fetched, with one set of weights. The Hub is not trusted, as it may be a mirror:

- Contents are compared with the hashes that the Hub states (sha256 of large files, git's sha1 of small ones) before
  they get a place in the cache, and nothing that the Hub sends becomes a path before it is checked.
- A revision is recorded in the cache when all its files are there: an interrupted fetch is no model, and
  the last whole one opens without a network.
- A failure is one line with its remedy, and a Hub that does not answer, or hardly does, is given up.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from unistep.errors import UserError
from unistep.formats.hub.address import HubAddress, hub_address
from unistep.formats.hub.cache import (
    cached_file,
    digest_of,
    has_blob,
    is_inside,
    keep_blob,
    link_blob,
    new_blob,
    record_revision,
)
from unistep.formats.hub.errors import OTHER_CACHE, BrokenOff, Damaged, Refused, Unreachable, explained
from unistep.formats.hub.listing import HubFile, file_url, list_files, request_headers, stated_file
from unistep.formats.hub.transfer import SizeError, read_file
from unistep.formats.model_folder.files import (
    CARD,
    INDEX,
    REQUIRED,
    check_components,
    choose_weights,
    is_whole,
    shards_of,
)
from unistep.text import shown, version_of

_LOG = logging.getLogger(__name__)

_T = TypeVar("_T")
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".pkl")

TIMEOUT = 10.0  # seconds for an answer
_ATTEMPTS = 3  # to fetch a file, in a row without progress
_PROGRESS = 1 << 20  # bytes
_MOST_TEXT = 64 << 20  # bytes of a configuration, index or card


def fetch_folder(
    model_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    variant: str | None = None,
    force_download: bool = False,
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
        force_download: fetch all files again, those that the cache holds too.

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
        if force_download:
            _check_online(address, local_files_only)
        # A commit never changes: where it is whole there is nothing to ask.
        elif local_files_only or offline or re.fullmatch(r"[0-9a-f]{40}", address.revision):
            if folder := _cached_folder(address, variant):
                return folder
        if local_files_only or offline:
            weights = f" with weights of variant {variant}" if variant else ""
            remedy = "unset HF_HUB_OFFLINE" if offline else "leave out `local_files_only`"
            raise UserError(f"{address} is not whole in the cache {address.cache}{weights}; {remedy} to fetch it")
        try:
            return _fetch(address, variant, force_download)
        except Refused as error:
            if force_download or not (folder := _cached_folder(address, variant)):
                raise
            if not isinstance(error, Unreachable):
                raise UserError(f"{error}; the copy in the cache opens with `local_files_only`") from None
            _LOG.warning("%s; using the copy in the cache", error)
            return folder


def fetch_config(
    model_id: str,
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> tuple[Path, str]:
    """Fetches one file of a model from the Hub, or takes it from the cache, as `fetch_folder`.

    Args:
        model_id: `owner/name`.
        name: path of the file in the repository.
        revision: branch, tag or commit; None is main.
        token: access token of private and gated models, as in `fetch_folder`.
        cache_dir: folder of the cache; None is the Hub's own.
        local_files_only: take the file from the cache, and download nothing.
        force_download: fetch the file again if the cache holds it.

    Returns:
        The file in the cache, and its commit.

    Raises:
        UserError: no such model, revision or file; no permission; no network and not in the cache; a damaged download.
    """
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name, re.ASCII):
        raise UserError(f"{shown(name)[:200]} is no file of a repository; check the name")
    address = hub_address(model_id, revision, token, cache_dir)
    with explained(address):
        if force_download:
            _check_online(address, local_files_only)
        cached = cached_file(address, name, address.revision)
        cached = cached if cached and is_inside(address, cached) else None
        if local_files_only or is_offline():
            if cached is None:
                raise UserError(f"{name} of {address} is not in the cache {address.cache}, and nothing is downloaded")
        else:
            try:
                with explained(address):
                    commit, files = list_files(address, TIMEOUT)
                if name not in files:
                    raise UserError(f"{address} has no {name}; check the name")
                return _get(address, commit, name, files[name], force_download), commit
            except Unreachable as error:
                if force_download or cached is None:
                    raise
                _LOG.warning("%s; using the copy in the cache", error)
        return cached, cached.parents[name.count("/")].name


def _check_online(address: HubAddress, local_files_only: bool) -> None:
    if local_files_only or is_offline():
        other = "HF_HUB_OFFLINE" if is_offline() else "`local_files_only`"
        raise UserError(f"`force_download` of {address} and {other} exclude each other; leave out one")


def _fetch(address: HubAddress, variant: str | None, force: bool = False) -> Path:
    with explained(address):
        commit, files = list_files(address, TIMEOUT)
    if missing := [name for name in REQUIRED if name not in files]:
        checkpoints = sorted(name for name in files if name.endswith(_CHECKPOINTS))
        remedy = f"download {shown(checkpoints[0])[:200]} and give its path" if checkpoints else "check the name"
        raise UserError(f"{address} is not the folder of a consistency model: it has no {missing[0]}; {remedy}")
    weights = choose_weights(files, variant, address)
    small = [*REQUIRED, *([CARD] if CARD in files else [])]
    paths = [_get(address, commit, name, files[name], force) for name in small]
    check_components(paths[0], address)
    path = _get(address, commit, weights, files[weights], force)
    if weights.endswith(".json"):
        shards = shards_of(path, address)
        if missing := [name for name in shards if name not in files]:
            raise UserError(f"{address} is incomplete: it has no {missing[0]}; tell the model's owner")
        for name in shards:
            _get(address, commit, name, files[name], force)
    folder = paths[0].parent
    record_revision(address, commit)
    return folder


def _get(address: HubAddress, commit: str, name: str, file: HubFile, force: bool = False) -> Path:
    """The path of a file of a commit, which is fetched if it is not in the cache, or if it must be."""
    path = None if force else cached_file(address, name, commit)
    # Its content was compared when it came.
    if path and is_inside(address, path) and file.size in (None, path.stat().st_size):
        return path
    size, digest = _tried(address, name, lambda: stated_file(address, commit, name, file, TIMEOUT))
    if size > _MOST_TEXT and name.endswith((".json", ".md")):
        raise UserError(f"{name} of {address} takes {size / 1e6:,.0f} MB, which no such file does; check the name")
    with explained(address, name):
        if force or not has_blob(address, digest):
            _check_space(address, name, size)
            with new_blob(address, digest) as (temporary, target):
                _download(address, commit, name, size, digest, temporary, target)
                target.close()
                keep_blob(address, temporary, digest)
        return link_blob(address, digest, name, commit)


def _check_space(address: HubAddress, name: str, size: int) -> None:
    place = next(folder for folder in (address.cache, *address.cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        sizes = f"{size / 1e6:,.0f} MB, of which {address.cache} has {free / 1e6:,.0f}"
        raise UserError(f"{name} of {address} takes {sizes}; {OTHER_CACHE}")


def _download(
    address: HubAddress, commit: str, name: str, size: int, digest: str, temporary: Path, target: BinaryIO
) -> None:
    """Fills an empty file, and compares its hash."""
    from huggingface_hub.utils import tqdm

    url, headers = file_url(address, commit, name), request_headers(address)
    with tqdm(total=size, unit="B", unit_scale=True, desc=name[-40:], disable=None) as bar:

        def fill() -> None:
            try:
                read_file(url, headers, TIMEOUT, target, size, bar.update)
                target.flush()
                if digest_of(temporary, len(digest)) != digest:
                    problem = "came damaged: its hash is not the one stated; deleted, try again"
                    raise Damaged(f"{name} of {address} {problem}")
            except (Damaged, SizeError):
                bar.update(-target.tell())
                target.seek(0)
                target.truncate()
                raise

        _tried(address, name, fill, target.tell)


def _tried(address: HubAddress, name: str, work: Callable[[], _T], position: Callable[[], int] = lambda: 0) -> _T:
    """Returns the result of `work` for a file, which is tried again when it breaks off.

    Args:
        address: address of the model.
        name: name of the file.
        work: function that asks the Hub.
        position: function that returns the number of bytes that are there.
    """
    attempt = 1
    while True:
        before = position()
        try:
            with explained(address, name):
                return work()
        except BrokenOff:
            if position() - before > _PROGRESS:
                attempt = 1
            if attempt == _ATTEMPTS:
                raise
        time.sleep(attempt)
        attempt += 1


def _cached_folder(address: HubAddress, variant: str | None) -> Path | None:
    """The folder in the cache; None if it is not whole there."""
    path = cached_file(address, INDEX, address.revision)
    return path.parent if path and is_whole(path.parent, variant) else None


def api_of(address: HubAddress) -> Any:
    """Makes the client of the Hub for an address."""
    from huggingface_hub import HfApi

    return HfApi(
        endpoint=address.endpoint,
        token=address.token,
        library_name="unistep",
        library_version=version_of(),
    )


def is_offline() -> bool:
    """Returns whether HF_HUB_OFFLINE is set, or was when the library was imported."""
    from huggingface_hub import constants

    now = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return now or bool(constants.HF_HUB_OFFLINE)
