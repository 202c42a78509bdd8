"""Datasets of the Hugging Face Hub: `hf://datasets/OWNER/NAME`, as the Hub's own tools spell it.

The files are those of the repository, `.parquet`, `.tar`, `.zip` or folders of images, in the cache that
`huggingface_hub` shares with its other users. Scripts of a repository are neither fetched nor executed.
"""

from __future__ import annotations

import re
from pathlib import Path

from unistep.data.formats import SUFFIXES
from unistep.errors import UserError
from unistep.text import shown

_NAME = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([\w./-]+?))?(?:/([^@]+))?/?")
_START = "hf://"
_DATA = ("parquet", "tar", "zip", "arrow")
_BESIDE = ("dataset.json", "metadata.jsonl", "metadata.csv", "classes.txt", "classnames.txt", "state.json")


def hub_folder(source: str) -> Path | None:
    """The files of a dataset of the Hub, fetched unless they are in its cache.

    Args:
        source: `hf://datasets/OWNER/NAME`, with `@REVISION` and `/FOLDER` after it if need be.

    Returns:
        Their folder; None where the source is not of this form.

    Raises:
        UserError: the name is of another form, or the Hub cannot be reached or has no such dataset.
    """
    if not source.startswith(_START):
        return None
    match = _NAME.fullmatch(source)
    if match is None or ".." in source:
        raise UserError(f"{shown(source)}: it is no dataset of the Hub", "give hf://datasets/OWNER/NAME")
    name, revision, folder = match[1], match[2], match[3] or ""
    place = f"{folder}/" if folder else ""
    wanted = [*(f"{place}*.{ending}" for ending in _DATA), *(f"{place}*{suffix}" for suffix in sorted(SUFFIXES))]
    wanted += [f"{place}*{file}" for file in (*_BESIDE, "dataset_dict.json")]
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name, repo_type="dataset", revision=revision, allow_patterns=[*wanted, folder] if folder else wanted
        )
    except Exception as error:  # its own errors, those of the HTTP library below it, and those of the system
        reason = shown(error).partition("\\n")[0][:200] or type(error).__name__
        raise UserError(
            f"{shown(source)}: it cannot be fetched from the Hub ({reason})",
            "look at the name and, for a private one, at HF_TOKEN; or fetch it by other means and give its folder",
        ) from error
    return Path(found) / folder
