"""The command line as a user meets it, but in this process: an empty folder to work in, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from unistep.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """The exit code, and what was printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]
Refused = Callable[..., str]


def contents(folder: Path) -> dict[str, bytes | None]:
    """All files below `folder`, hidden ones too, with their bytes; folders have None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The empty folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here, capsys) -> Run:
    """run("sample", "--steps", 2): the outcome of that command line."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(run, here) -> Refused:
    """refused(["sample", "--steps", 0], "--steps 0", ...): the one line, which holds all the words.

    The exit code must be 2, and no file or folder may have come, gone or changed.
    """

    def check(arguments: list[object], *words: str) -> str:
        before = contents(here)
        outcome = run(*arguments)
        assert outcome.code == 2, outcome
        assert outcome.err.startswith("unistep: error: ")
        assert outcome.err.endswith("\n") and outcome.err.count("\n") == 1, outcome.err
        assert [word for word in words if word not in outcome.err] == [], outcome.err
        assert contents(here) == before
        return outcome.err

    return check
