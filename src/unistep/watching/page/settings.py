"""Settings of runs as tables: all of one, and those in which several differ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unistep.documents import DocumentError, parse_json
from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.watching.page.markup import escaped, folded, table
from unistep.watching.record import RunRecord

_HISTORY = "history.jsonl"
_MOST_BYTES, _MOST_CHANGES = 4_000_000, 200
# Settings that tell people something, and training nothing.
_COMMENTS = ("description", "published_at")


def settings_of(run: RunRecord) -> dict[str, str]:
    """The settings of a run as text, by dotted name; those of a stage begin with its name."""
    stages = run.values.get("stages")
    own = {key: value for key, value in run.values.items() if key != "stages"}
    return dict(_leaves(own)) | (dict(_leaves(stages)) if isinstance(stages, Mapping) else {})


def settings_tables(run: RunRecord) -> str:
    """All settings of a run, a table for the run and one for each stage, folded."""
    values, names = settings_of(run), [stage.name for stage in run.stages]
    parts = []
    for section in ("", *names):
        rows = [
            (escaped(key.removeprefix(f"{section}.") if section else key), escaped(value))
            for key, value in values.items()
            if (key.partition(".")[0] == section if section else key.partition(".")[0] not in names)
        ]
        title = f"stage {escaped(section)}" if section else "data, network and evaluation"
        parts.append(folded(title, table(["setting", "value"], rows, kind="settings")))
    return "".join(parts)


def differences(runs: Sequence[RunRecord], heads: Sequence[str]) -> str:
    """The settings that are not the same in all runs.

    Args:
        runs: runs.
        heads: name of each, as markup.
    """
    found = [settings_of(run) for run in runs]
    keys = dict.fromkeys(key for values in found for key in values)
    rows = [
        (
            escaped(key),
            *(escaped(values[key]) if key in values else '<span class="none">none</span>' for values in found),
        )
        for key in keys
        if len({values.get(key) for values in found}) > 1 and key.rpartition(".")[2] not in _COMMENTS
    ]
    if not rows:
        return "<p>The runs have the same settings.</p>"
    return table(["setting", *heads], rows, kind="settings")


def history(run: RunRecord) -> str:
    """The changes that were made when a run went on; empty where there are none."""
    path = run.folder / _HISTORY
    try:
        check_regular_file(path, "", most_bytes=_MOST_BYTES)
        lines = path.read_bytes().split(b"\n")
    except (UserError, OSError):
        return ""
    rows = [row for line in lines[:_MOST_CHANGES] for row in _changes(line)]
    return table(["when", "after steps", "setting", "from", "to"], rows, kind="settings") if rows else ""


def _changes(line: bytes) -> list[tuple[str, ...]]:
    try:
        entry = parse_json(line)
        steps = ", ".join(f"{name} {step}" for name, step in entry["steps"].items())
        when = str(entry["time"])
        return [
            tuple(map(escaped, (when, steps, key, _text(before), _text(after))))
            for key, (before, after) in entry["changed"].items()
        ]
    except (DocumentError, KeyError, TypeError, ValueError, AttributeError):
        return []


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(value)


def _text(value: Any) -> str:
    """A value as YAML spells it, on one line."""
    if isinstance(value, str):
        return value or '""'
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
