"""The log of a stage, `metrics.jsonl`, read while others may write it; what is cut or damaged is passed over."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unistep.errors import UserError
from unistep.files import check_regular_file

_MOST_BYTES = 1 << 28  # of a log; of a longer one the end is read
_LONGEST_LINE = 1 << 16
_MOST_NUMBER = 1e300
_MOST_NAMES, _LONGEST_NAME = 200, 100
# In a long log the lines before these last bytes are skipped, but for measurements, where only the state is asked for.
_RECENT = 1 << 18
_INTERVAL = b'/low"'


@dataclass(frozen=True)
class StageLog:
    """The lines of a log.

    Args:
        lines: step and numbers by name of each line, in the order of the file.
        damaged: number of lines that are none.
    """

    lines: tuple[tuple[int, dict[str, float]], ...] = ()
    damaged: int = 0

    @property
    def step(self) -> int:
        """Step of the last line; 0 where there is none."""
        return self.lines[-1][0] if self.lines else 0

    def last(self, name: str) -> float | None:
        """The newest number of a name; None where there is none."""
        return next((values[name] for _, values in reversed(self.lines) if name in values), None)

    def names(self) -> list[str]:
        """Names of all numbers, in the order of their first line."""
        found = dict.fromkeys(name for _, values in self.lines for name in values)
        return list(found)[:_MOST_NAMES]

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Step and number of every line that has the name."""
        return [(step, values[name]) for step, values in self.lines if name in values]

    def measured(self) -> list[str]:
        """Names of the measurements, which have an interval: the first of them is that of the newest line."""
        found: dict[str, None] = {}
        for _, values in reversed(self.lines):
            found |= dict.fromkeys(name for name in values if f"{name}/low" in values)
        return list(found)


def read_log(path: Path, *, brief: bool = False) -> StageLog:
    """Reads a log; one that is missing, or no file, is empty.

    Args:
        path: file.
        brief: whether only the last lines and those of measurements are needed.
    """
    try:
        check_regular_file(path, "")
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - _MOST_BYTES))
            if file.tell():
                _line(file)  # which may be cut
            return _parsed(_lines(file, size - _RECENT if brief else 0))
    except (UserError, OSError):
        return StageLog()


def _parsed(lines: Iterator[bytes]) -> StageLog:
    kept: list[tuple[int, dict[str, float]]] = []
    damaged = 0
    for line in lines:
        if (found := _entry(line)) is not None:
            kept.append(found)
        else:
            # The last line may be cut: it is being written, or a killed process left it.
            damaged += line.endswith(b"\n") and bool(line.strip())
    return StageLog(tuple(kept), damaged)


def _lines(file: Any, recent: int) -> Iterator[bytes]:
    """The lines of a file; before the offset `recent` only those of measurements."""
    while line := _line(file):
        if file.tell() > recent or _INTERVAL in line:
            yield line


def _line(file: Any) -> bytes:
    """The next line; of one that is too long the end, which is damaged."""
    line = file.readline(_LONGEST_LINE)
    while len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
        line = b"}" + file.readline(_LONGEST_LINE - 1)
        if len(line) == 1:
            return b""
    return line


def _entry(line: bytes) -> tuple[int, dict[str, float]] | None:
    try:
        values = json.loads(line)
        step = values.pop("step")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if type(step) is not int or not 0 <= step < 1 << 53:
        return None
    return step, {name[:_LONGEST_NAME]: float(value) for name, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _MOST_NUMBER
