"""What README and docs/evaluation.md tell people to type works: every command parses, the Python runs."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from unistep.cli.main import COMMANDS
from unistep.cli.train import parse_run
from unistep.workflows.models import EMBEDDED

ROOT = Path(__file__).parents[1]
# What the commands call with what they have parsed, of those that are not functions alone.
_PARSED = {}
README, EVALUATION = (ROOT / name for name in ("README.md", "docs/evaluation.md"))


def blocks(path: Path) -> list[tuple[str, str]]:
    """The language and the text of every block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def command_lines(path: Path) -> list[list[str]]:
    return [
        shlex.split(line.removeprefix(".venv/bin/"))
        for language, text in blocks(path)
        if not language
        for line in text.splitlines()
        if line.removeprefix(".venv/bin/").startswith("unistep ")
    ]


def test_readme_shows_commands():
    assert {words[1] for words in command_lines(README)} >= {"train", "sample", "data", "evaluate", "search", "edit"}


@pytest.mark.parametrize("words", command_lines(README) + command_lines(EVALUATION), ids=" ".join)
def test_commands_parse(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words[1] in COMMANDS
    if words[1] == "train":
        config, folder = parse_run(words[2:])
        assert config.stages[-1].name == "student"
        assert folder.parts[0] == "runs"
    elif words[1] in _PARSED:
        parsed = []
        for place in _PARSED[words[1]]:
            monkeypatch.setattr(place, lambda *arguments: parsed.append(arguments))
        importlib.import_module(f"unistep.cli.{words[1]}").run(words[2:])
        assert len(parsed) == 1
    elif words[1] in ("sample", "edit", "evaluate", "search"):
        monkeypatch.setattr("unistep.cli.command.interruptible", _is_parsed)
        with pytest.raises(_Parsed):
            importlib.import_module(f"unistep.cli.{words[1]}").run(words[2:])


class _Parsed(Exception):
    """A command line has been parsed."""


def _is_parsed(*arguments: object, **values: object) -> None:
    raise _Parsed


def test_python_runs(tmp_path, monkeypatch):
    published, own = [text for language, text in blocks(README) if language == "python"]
    names: dict[str, object] = {}
    exec(own, names)
    assert names["images"].shape == (10, 1, 28, 28)

    # No network here: the same lines with the model that ships.
    monkeypatch.chdir(tmp_path)
    exec(published.replace("openai/diffusers-cd_cat256_l2", str(EMBEDDED)), names)
    assert (tmp_path / "cat.png").exists()


def test_python_of_the_evaluation_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (own,) = [text for language, text in blocks(EVALUATION) if language == "python"]
    exec(own, {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["FD-MNIST", "FD-MNIST,", "KD-MNIST"]
    assert lines[0].startswith(lines[-1].split()[1][:4]) and (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("path", [README, EVALUATION], ids=lambda path: path.name)
def test_files_it_names_exist(path):
    for link in re.findall(r"\]\((?!https?:|#)([^)]+)\)", path.read_text()):
        assert (path.parent / link).exists(), link
