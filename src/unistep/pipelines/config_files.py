"""Configs of pipelines and schedulers, read from folders and from the hub."""

import os
from collections.abc import Sequence
from typing import Any

from unistep.checks import user_path
from unistep.errors import UserError
from unistep.files import LAYOUT, whole_file
from unistep.formats.hub.address import is_hub_name
from unistep.formats.json_config import read_object, shown
from unistep.pipelines.options import LOADING, Download


def read_config(
    name: str | os.PathLike[str],
    file: str,
    folders: Sequence[str],
    options: dict[str, Any],
    *,
    return_unused_kwargs: bool,
    return_commit_hash: bool,
) -> Any:
    """Reads a config.

    Args:
        name: the file, a folder, or owner/name on the hub.
        file: name of the file in a folder.
        folders: folders below that in which it may be, if the option `subfolder` names none; the last one on the hub.
        options: options of a download.
        return_unused_kwargs: whether a dict of the options that are none of these comes with it.
        return_commit_hash: whether the commit on the hub comes with it; None for a file.

    Returns:
        The settings by name, or a tuple of them and what comes with them.

    Raises:
        UserError: there is no such file, or it is damaged.
        TypeError: an option that does not exist.
    """
    download, unused = Download.of("load_config", options, LOADING, keep_unknown=return_unused_kwargs)
    path, commit = user_path(name), None
    folders = [download.subfolder] if download.subfolder else folders
    if path.is_dir():
        places = [path / part / file for part in folders]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise UserError(f"{path} has no {' and no '.join(str(p.relative_to(path)) for p in places)}; {LAYOUT}")
        path = found
    elif not path.is_file():
        if not is_hub_name(os.fspath(name)):
            raise UserError(f"{shown(os.fspath(name))} is no file or folder; {LAYOUT}")
        path, commit = download.config(os.fspath(name), f"{folders[-1]}/{file}".lstrip("/"))
    results = [read_object(path, LAYOUT)]
    results += [unused] if return_unused_kwargs else []
    results += [commit] if return_commit_hash else []
    return tuple(results) if len(results) > 1 else results[0]


def write_config(folder: str | os.PathLike[str], file: str, text: str) -> None:
    """Writes a config into a folder, which is made if there is none.

    Raises:
        UserError: it cannot be written.
    """
    path = user_path(folder) / file
    try:
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
