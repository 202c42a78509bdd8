"""The commands of README and docs parse, their Python runs, their links lead somewhere.

docs/extending.md adds rows to tables, and has a test of its own; so have the pictures and tasks of docs/editing.md.
"""

import doctest
import importlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import unistep
from unistep.cli.main import COMMANDS
from unistep.config import find_recipe
from unistep.workflows.models import EMBEDDED, EMBEDDED_TEACHER

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    """The blocks of code in a language; "" is a terminal."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def command_lines(path: Path) -> list[list[str]]:
    lines = [line for text in blocks(path, "") for line in text.replace("\\\n", " ").splitlines()]
    lines = [line.removeprefix(".venv/bin/").partition(" > ")[0] for line in lines]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("unistep ")]


COMMAND_LINES = {
    " ".join(words): words for page in PAGES if page.name != "extending.md" for words in command_lines(page)
}


class _Parsed(Exception):
    """A command line has been parsed."""


@pytest.mark.parametrize("words", COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_a_command_parses(words, tmp_path, monkeypatch):
    def parsed(*arguments: object, **values: object) -> None:
        raise _Parsed

    monkeypatch.chdir(tmp_path)
    shutil.copy(find_recipe("mnist-quick"), "mine.yaml")
    for flag in {"--resume", "--init-from"} & set(words):
        folder = Path(words[words.index(flag) + 1])
        folder.mkdir(parents=True)
        shutil.copy("mine.yaml", folder / "config.yaml")
    assert words[1] in COMMANDS
    for module in ("train", "command"):  # the first is imported with the real one, which is put back in the end
        monkeypatch.setattr(f"unistep.cli.{module}.interruptible", parsed)
    with pytest.raises(_Parsed):
        importlib.import_module(f"unistep.cli.{words[1]}").run(words[2:])


def test_the_readme_shows_every_command():
    shown = {words[1] for words in command_lines(README)} | set(re.findall(r"`unistep (\w+)", README.read_text()))
    assert shown >= set(COMMANDS)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in "abcdefgh":
        unistep.sample(num_images=1, seed=int(rng.integers(99)), progress=False).pil()[0].save(f"photos/{name}.png")
    return tmp_path


def run(text: str) -> dict[str, object]:
    """Runs Python of a page with models that are here in place of the published ones."""
    for name in ("openai/diffusers-cd_cat256_l2", "cd_imagenet64_l2.pt"):
        text = text.replace(name, str(EMBEDDED))
    names: dict[str, object] = {}
    exec(text.replace("edm_imagenet64_ema.pt", str(EMBEDDED_TEACHER)), names)
    return names


def test_the_python_of_the_readme_runs(place, monkeypatch):
    published, own, training = blocks(README, "python")
    run(published)
    assert (place / "cat.png").exists()
    names = run(own)
    assert len(names["images"]) == 10 and (place / "digits.png").exists()
    assert len(list((place / "inpainted").iterdir())) == 40

    # The same calls in seconds: a smaller network, two steps, few images.
    train, search = unistep.train, unistep.search
    short = {"steps": 2, "batch_size": 2}
    network = {"block_out_channels": [8, 8], "attention_head_dim": 8}

    def quick_train(recipe, *, student, **given):
        assert student == {"steps": 500}
        return train(recipe, student=short, teacher=short, network=network, progress=False, **given)

    def quick_search(model, **given):
        return search(model, num_images=20, features="mnist", progress=False, **given)

    monkeypatch.setattr(unistep, "train", quick_train, raising=False)
    monkeypatch.setattr(unistep, "search", quick_search, raising=False)
    names = run("import unistep\n" + training)
    assert names["run"].stages == ("teacher", "student") and len(names["found"].found) == 2


def test_the_python_of_the_page_of_checkpoints_runs(place):
    own, published = blocks(ROOT / "docs/checkpoints.md", "python")
    assert len(run(own)["images"]) == 16 and (place / "teachers/imagenet64/model_index.json").exists()
    run(published)
    assert (place / "cat-2-steps.png").exists()


def test_the_python_of_the_page_for_users_of_diffusers_runs(place):
    (own,) = blocks(ROOT / "docs/diffusers.md", "python")
    assert len(run(own)["images"]) == 1 and (place / "cat/unet/diffusion_pytorch_model.fp16.safetensors").exists()


def test_the_python_of_the_page_of_evaluation_runs(place, capsys):
    (own,) = blocks(ROOT / "docs/evaluation.md", "python")
    run(own)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["FD-MNIST", "FD-MNIST,", "KD-MNIST"]
    assert lines[0].startswith(lines[-1].split()[1][:4]) and (place / "metrics.json").exists()


def test_the_values_of_the_page_of_randomness_are_drawn():
    page = str(ROOT / "docs/randomness.md")
    assert doctest.testfile(page, module_relative=False) == doctest.TestResults(failed=0, attempted=3)


def test_no_page_has_python_that_no_test_runs():
    tested = {"README.md": 3, "checkpoints.md": 2, "diffusers.md": 1, "evaluation.md": 1, "randomness.md": 1}
    own_tests = {"editing.md", "extending.md"}
    found = {page.name: len(blocks(page, "python")) for page in PAGES if page.name not in own_tests}
    assert {name: count for name, count in found.items() if count} == tested


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link
