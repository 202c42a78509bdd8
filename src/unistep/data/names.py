"""Names of files in one spelling, whatever system wrote them, and the litter that systems leave between files."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from unistep.text import shown

LITTER = frozenset(
    (
        "__macosx thumbs.db ehthumbs.db desktop.ini @eadir __pycache__ #recycle $recycle.bin lost+found"
        " system_volume_information"
    ).split()
)
"""Names, in lower case, of files and folders that are no data; hidden ones (`.DS_Store`, `.ipynb_checkpoints`) are
neither."""

_LONGEST_SHOWN = 200


def normalised(name: str) -> str:
    """A relative name with forward slashes, without `./`, in the Unicode form NFC.

    Windows writes backslashes into archives and lists, and macOS decomposes letters with accents.
    """
    parts = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def leads_out(name: str) -> bool:
    """Returns whether a name of an archive is absolute, or leads out of the folder that it would be unpacked to."""
    slashed = name.replace("\\", "/")
    return slashed.startswith("/") or re.match(r"[A-Za-z]:", slashed) is not None or ".." in slashed.split("/")


def is_litter(name: str) -> bool:
    """Returns whether a relative name is that of a hidden file or of litter, or lies in such a folder."""
    return any(part.startswith(".") or part.replace(" ", "_").lower() in LITTER for part in name.split("/"))


def files_in(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The files right in a folder whose names match a pattern, sorted; none where it cannot be listed.

    Only those are looked at: a folder may hold a million images.
    """
    try:
        names = sorted(filter(pattern.fullmatch, os.listdir(folder)))
    except OSError:  # told where the folder is listed for images
        return []
    return [folder / name for name in names if os.path.isfile(folder / name)]


def brief(text: object) -> str:
    """A name or a reason on one line of bounded length."""
    line = shown(text)
    return line if len(line) <= _LONGEST_SHOWN else f"{line[: _LONGEST_SHOWN - 3]}..."
