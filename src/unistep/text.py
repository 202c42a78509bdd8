"""Names in messages, the nearest name for one that does not exist, versions, and tables for notebooks."""

from __future__ import annotations

import difflib
import html
import os
from collections.abc import Iterable
from pathlib import Path


def shown(name: object) -> str:
    """`name` on one line of printable text: control characters and undecodable bytes are escaped."""
    text = str(name).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def version_of(package: str = "unistep") -> str:
    """The installed version of a package; `source` for one that runs from its sources and is not installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source"


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `name`, or None if none is much like it; of two alike one with the same letters."""
    by_folded = {candidate.lower(): candidate for candidate in candidates}
    word = name.lower()
    matches = difflib.get_close_matches(word, by_folded, n=1, cutoff=0.5)
    if matches and sorted(matches[0]) != sorted(word):
        ratio = difflib.SequenceMatcher(None, matches[0], word).ratio()
        matches = [
            folded
            for folded in by_folded
            if sorted(folded) == sorted(word) and difflib.SequenceMatcher(None, folded, word).ratio() >= ratio
        ] or matches
    return by_folded[matches[0]] if matches else None


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean X?` with the candidate most like `word`; empty where none is much like it."""
    near = nearest(word, candidates)
    return f"; did you mean {near}?" if near else ""


def nearest_path(path: Path) -> Path | None:
    """The existing path most like `path`: its own folder, or the first folder above it that exists, is searched."""
    missing = path
    while not os.path.isdir(missing.parent):
        if missing.parent == missing:
            return None
        missing = missing.parent
    try:
        match = nearest(missing.name, os.listdir(missing.parent))
    except OSError:
        return None
    return None if match is None else missing.parent / match


def html_table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A table of two columns, as a notebook shows it.

    Args:
        title: caption.
        rows: name and value of each row; line breaks stay.
    """
    cells = "".join(
        f"<tr><th style='text-align: left'>{html.escape(name)}</th>"
        f"<td style='text-align: left; white-space: pre-wrap'>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"


def html_columns(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of many columns, as a notebook shows it.

    Args:
        columns: names of the columns.
        rows: values of each row, one a column.
    """
    head = "".join(f"<th style='text-align: left'>{html.escape(name)}</th>" for name in columns)
    cells = ("".join(f"<td style='text-align: left'>{html.escape(value)}</td>" for value in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
