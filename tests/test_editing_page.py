"""What docs/editing.md tells people to type works: every command parses, the Python runs, every task is shown."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

from unistep.cli.main import COMMANDS, main
from unistep.core.pixels import to_float
from unistep.editing.operators.mask import Inpainting, lower
from unistep.editing.tasks import TASKS

PAGE = Path(__file__).parents[1] / "docs/editing.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
LINES = [shlex.split(line) for language, text in BLOCKS if not language for line in text.splitlines()]
COMMAND_LINES = [words for words in LINES if words[0] == "unistep"]
PYTHON = [text for language, text in BLOCKS if language == "python"]


def test_every_task_is_shown():
    assert {words[2] for words in COMMAND_LINES if words[1] == "edit"} == set(TASKS)


def test_every_line_is_a_command_of_this_repository():
    others = [words for words in LINES if words[0] != "unistep"]
    assert all(words[0] == "python" and (PAGE.parents[1] / words[1]).is_file() for words in others)


@pytest.mark.parametrize("words", COMMAND_LINES, ids=" ".join)
def test_commands_parse(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words[1] in COMMANDS
    monkeypatch.setattr("unistep.cli.command.interruptible", _is_parsed)
    with pytest.raises(_Parsed):
        importlib.import_module(f"unistep.cli.{words[1]}").run(words[2:])


class _Parsed(Exception):
    """A command line has been parsed."""


def _is_parsed(*arguments: object, **values: object) -> None:
    raise _Parsed


@pytest.mark.slow
def test_python_writes_what_the_command_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(PYTHON[0], {})
    files = {str(p): p.read_bytes() for p in [*Path("painted").iterdir(), Path("sheet.png")]}
    assert len(files) == 4 * 4 + 1
    for words in COMMAND_LINES[:2]:
        main([*words[1:], *(["--no-progress"] if words[1] == "edit" else [])])
    assert {name: Path(name).read_bytes() for name in files} == files


def test_python_that_edits_runs():
    names: dict[str, object] = {}
    exec(PYTHON[1], names)
    digits, best, mean = names["digits"], names["best"], names["mean"]
    assert isinstance(digits, torch.Tensor) and isinstance(best, torch.Tensor)
    operator = Inpainting(lower((28, 28)))
    for images in (best, mean):
        assert isinstance(images, torch.Tensor)
        assert images.shape == digits.shape and images.dtype == torch.uint8
        assert (operator.A(to_float(images)) - operator.A(to_float(digits))).abs().max() <= 2.001 / 255
    assert not torch.equal(best, digits)


def test_python_of_an_own_operator_runs():
    names: dict[str, object] = {}
    exec(PYTHON[2], names)
    images, rows = names["images"], names["rows"]
    assert isinstance(images, torch.Tensor) and isinstance(rows, torch.Tensor)
    assert (images[:, :, ::2] / 127.5 - 1 - rows).abs().max() < 2 / 255
    assert images[:, :, 1::2].float().std() > 10


def test_files_it_names_exist():
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", TEXT)
    assert len(links) >= 3
    for link in links:
        assert (PAGE.parent / link).exists(), link


def test_the_tables_of_every_task_that_is_measured_are_there():
    measured = TEXT.split("<!-- editing: begin -->")[1].split("<!-- editing: end -->")[0]
    assert re.findall(r"^### (\w+)", measured, re.MULTILINE) == ["Inpainting", "Super", "Denoising", "Deblurring"]
    row = r"^\| class guessed, one result \| \d+ \| [\d.]+ \| [\d.]+% \|$"
    assert len(re.findall(row, measured, re.MULTILINE)) == 4
