"""What docs/extending.md shows works, run as one program; commands of docs/methods.md parse; links lead somewhere."""

import filecmp
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import unistep
from unistep.cli.parameter import parameters_of
from unistep.cli.parsing import parse
from unistep.cli.train import parse_run
from unistep.core.distance import l2
from unistep.core.noise import karras_sigmas
from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom
from unistep.formats.model_folder.folder import load_model
from unistep.objectives.consistency import ConsistencyObjective
from unistep.objectives.methods import METHODS
from unistep.objectives.protocol import Objective
from unistep.workflows.models import EMBEDDED, EMBEDDED_TEACHER
from unistep.workflows.train import train

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def commands(page: str) -> list[list[str]]:
    lines = [line for text in blocks(page, "") for line in text.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("unistep ")]


def files_and_rows(page: str) -> list[tuple[str, str, str, str]]:
    """Each new file with the row after it: path and text of the file, path of the table and text of the row."""
    text = (DOCS / page).read_text()
    pattern = r"```python\n# src/(unistep/\S+)\n(.*?)```.*?```diff\n# src/(unistep/\S+)\n(.*?)```"
    found = re.findall(pattern, text, re.DOTALL)
    return [(file, code, table, re.sub(r"^\+", "", row, flags=re.MULTILINE)) for file, code, table, row in found]


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of the page's headings."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


# ------------------------------------------------------------------------------------------------ the new objective


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> dict:
    """What the blocks of the page have defined and trained."""
    folder = tmp_path_factory.mktemp("page")
    names: dict = {"folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # The type checks would take as long as the training.
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        for block in blocks("extending.md", "python"):
            exec(compile(block, "docs/extending.md", "exec"), names)
    return names


@torch.no_grad()
def relative_error(page: dict, model: nn.Module) -> torch.Tensor:
    """Of f at the levels of a grid, by the spread of f: 1 is the error of who knows the mean alone."""
    mu, s, generator, errors = page["MU"], page["S"], torch.Generator().manual_seed(1), []
    for sigma in karras_sigmas(20)[:-1]:
        spread = (s**2 + sigma**2).sqrt()
        x_t = mu + spread * torch.randn(64, 1, 8, 8, generator=generator)
        f = mu + s / spread * (x_t - mu)
        errors.append((model(x_t, sigma.expand(64)) - f).square().mean().sqrt() / s)
    return torch.stack(errors)


def logged(folder: Path, key: str) -> list[float]:
    return [json.loads(line)[key] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["model", "distilled"])
def test_the_page_learns_the_consistency_function_of_its_data(page, name):
    errors = relative_error(page, page[name])
    # An untrained student has 0.78 and 1; one that learned to denoise, as with x for a target, 0.68 and 1.
    assert errors.mean() < 0.15 and errors.max() < 0.3


def test_the_objective_of_the_page_trains_and_logs_its_curriculum(page):
    assert isinstance(page["AnchoredObjective"](page["AnchoredConfig"](), 10), Objective)
    losses, gaps = (logged(page["folder"] / "anchored", key) for key in ("loss", "gap"))
    assert sum(losses[-3:]) < 0.7 * sum(losses[:2]) * 3 / 2
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] == pytest.approx(0.05, rel=0.01)


def test_samples_of_the_page_are_its_data(page):
    samples = page["samples"]
    assert samples.shape == (100, 1, 8, 8)
    assert float(samples.mean()) == pytest.approx(page["MU"], abs=0.04)
    assert float(samples.std()) == pytest.approx(page["S"], abs=0.04)


def test_an_image_has_the_same_loss_in_any_batch(page):
    objective, student = page["AnchoredObjective"](page["AnchoredConfig"](), 10), page["new_student"]()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = objective.loss(student, x, None, 3, ImageRandom(range(4)), 0)
    halves = [objective.loss(student, x[i : i + 2], None, 3, ImageRandom(range(i, i + 2)), 0) for i in (0, 2)]
    torch.testing.assert_close(whole, torch.cat(halves))


def test_the_distance_of_the_page_fills_its_slot(page):
    objective = page["objective"]
    assert isinstance(objective, ConsistencyObjective)
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(3, 1, 8, 8, generator=generator) for _ in range(2))
    t, r = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([1.0, 0.5, 0.2])
    a, b = (page["new_student"]()(x + expand(level, 4) * noise, level) for level in (t, r))
    expected = sum(l2(nn.AvgPool2d(size)(a), nn.AvgPool2d(size)(b)) for size in (1, 2, 4))
    torch.testing.assert_close(objective.loss_at(page["new_student"](), x, None, t, r, noise), expected)


# ------------------------------------------------------------------------------------------------ the new row


def test_the_recipe_of_the_page_trains_a_model_that_opens(tmp_path, monkeypatch):
    (recipe,) = blocks("extending.md", "yaml")
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(recipe)
    ((_, _, *words),) = [words for words in commands("extending.md") if words[1] == "train"]
    config, folder = parse_run(words)
    assert str(folder) == "runs/mine"
    objective = config.stage("student").objective
    assert objective.num_scales(0, 1200) == 11 and objective.num_scales(1199, 1200) == 161

    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    np.savez("small.npz", arr_0=images, arr_1=np.arange(8) % 2)
    small = "--data.source small.npz --network.block_out_channels [8,8] --network.attention_head_dim 8"
    short = "--teacher.steps 1 --teacher.batch_size 4 --student.steps 2 --student.batch_size 4"
    config, folder = parse_run([*words, *small.split(), *short.split()])
    train(config, output=folder, progress=False)
    model = load_model(folder / "student" / "model")
    assert model.image_shape == (1, 8, 8) and model.info.kind == "consistency"
    slots = [getattr(objective, slot) for slot in ("pairs", "step", "target", "distance", "weighting", "scales")]
    assert model.method == "consistency objective: " + ", ".join(slots)
    # It is a new one.
    assert model.method not in {row.title for row in METHODS.values()}


# ------------------------------------------------------------------------------------------------ an edit task

MIRROR = '''
from dataclasses import dataclass

from unistep.editing.levels import DefaultLevels
from unistep.editing.tasks.measurement import DegradableTask


class EverySecondRow:
    name = "every second row"

    def A(self, x):
        return x[:, :, ::2]

    def A_pinv(self, y):
        x = y.new_zeros(len(y), y.shape[1], 2 * y.shape[2], y.shape[3])
        x[:, :, ::2] = y
        return x


@dataclass(frozen=True, kw_only=True)
class Interlaced(DegradableTask):
    """Makes every second row."""

    default = DefaultLevels(5.0, 0.5, steps=2)
    operator_name = "every second row"

    share: float = 0.5

    def operator(self, context, picture, image):
        return context.shared("interlaced", EverySecondRow)
'''


def test_a_task_of_editing_is_a_file_and_a_row(tmp_path, monkeypatch, capsys, model_folder):
    """Python, the command line with its help and its refusals, and the search take it from there."""
    import unistep
    from unistep.cli.main import main
    from unistep.editing import tasks
    from unistep.editing.model import edit_model
    from unistep.editing.tasks.task import EditContext

    (tmp_path / "interlaced.py").write_text(MIRROR)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    row = tasks.Task("interlace", "make every second row", "measurement", "interlaced:Interlaced")
    monkeypatch.setitem(tasks.TASKS, "interlace", row)

    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save("in.png")
    model = unistep.load(model_folder())
    made = unistep.edit(model, "in.png", "interlace", settle=1, progress=False)
    assert np.abs(made.images[0, 0, ::2].numpy().astype(int) - pixels[::2]).max() <= 2 and made.evaluations == 3
    assert row.options == ("steps", "timesteps", "sigmas", "candidates", "settle", "degrade", "share")
    assert tasks.measurement_options("interlace") == ("share",)
    assert tasks.task_of("every second row") is row
    task = tasks.make_task("interlace", {"share": 0.5})
    assert task.operator_of_any(EditContext(edit_model(model))).name == "every second row"

    main(["edit", "interlace", "--model", str(model.path), "--input", "in.png", "--output", "o.png", "--settle", "1"])
    assert np.array_equal(np.asarray(Image.open("o.png")), made.images[0, 0].numpy())
    with pytest.raises(SystemExit):
        main(["edit", "--help"])
    assert "  interlace           make every second row" in capsys.readouterr().out
    with pytest.raises(unistep.UserError, match="`share` is for inpaint, compressed-sensing, interlace, not for vary"):
        unistep.edit(model, "in.png", "vary", share=0.3)


# ------------------------------------------------------------------------------------- one file and one row


EXTENSIONS = {Path(file).stem: (file, code, table, row) for file, code, table, row in files_and_rows("extending.md")}


@pytest.fixture
def extended(tmp_path) -> Callable[..., str]:
    """extended("midpoint", ["sample", ...], ...): what the commands print in a copy with one file and one row more."""

    def run(name: str, *command_lines: list[object], before: str = "") -> str:
        file, code, table, row = EXTENSIONS[name]
        root, source = tmp_path / "copy", Path(unistep.__file__).parent
        shutil.copytree(source, root / "unistep", copy_function=os.link, ignore=shutil.ignore_patterns("__pycache__"))
        assert not (root / file).exists()
        (root / file).write_text(code)
        old = (root / table).read_text()
        head, start, rest = re.split(r"^((?:_ROWS|FORMATS).* = \(\n)", old, maxsplit=1, flags=re.MULTILINE)
        rows, end, tail = rest.partition("\n)\n")
        (root / table).unlink()  # it is linked to the package's
        (root / table).write_text(head + start + rows + "\n" + row.rstrip("\n") + end + tail)
        script = "from unistep.cli.main import main; import json, sys; " + before
        script += "\nfor words in json.loads(sys.argv[1]):\n    main(words)"
        words = json.dumps([[str(word) for word in line] for line in command_lines])
        environment = os.environ | {"PYTHONPATH": str(root)}
        ended = subprocess.run(
            [sys.executable, "-c", script, words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        changed = filecmp.dircmp(source, root / "unistep", ignore=["__pycache__"])
        new, different = [], []
        for here in walked(changed):
            new += [str(Path(here.right, name).relative_to(root)) for name in here.right_only]
            different += [str(Path(here.right, name).relative_to(root)) for name in here.diff_files]
            assert here.left_only == []
        assert (new, different) == ([file], [table])
        return ended.stdout

    return run


def walked(compared: filecmp.dircmp) -> Iterator[filecmp.dircmp]:
    yield compared
    for below in compared.subdirs.values():
        yield from walked(below)


def test_the_solver_of_the_page(extended, tmp_path):
    flags = ["--num-images", 2, "--no-progress"]
    lines = [
        ["sample", EMBEDDED_TEACHER, "--solver", n, "--steps", 12, *flags, "--output", f"{n}.npz"]
        for n in ("midpoint", "heun")
    ]
    out = extended("midpoint", *lines)
    assert "24 evaluations each" in out and "23 evaluations each" in out
    midpoint, heun = (np.load(tmp_path / f"{name}.npz")["arr_0"].astype(float) for name in ("midpoint", "heun"))
    # Both are second order: from the same noise nearly the same digits.
    assert 0 < np.abs(midpoint - heun).mean() < 8


def test_the_method_of_the_page(extended, tmp_path):
    """Recipes, flags, help, dry runs and cards know it, with the published number that its row gives."""
    np.savez(tmp_path / "small.npz", np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8))
    (tmp_path / "mine.yaml").write_text("""
data: {source: small.npz}
network: {name: song, model_channels: 8, channel_mult: [1], num_blocks: 1, attn_resolutions: []}
stages: {student: {method: anchored, steps: 2, batch_size: 2}}
""")
    flags = ["--student.objective.anchor-below", 0.1, "--output", "run", "--no-progress"]
    help_ends = "import contextlib\nrun = main\ndef main(words):\n    with contextlib.suppress(SystemExit): run(words)"
    lines = (["--student.objective.help"], ["--dry-run"], flags)
    shown = extended("anchored", *(["train", "mine.yaml", *line] for line in lines), before=help_ends)
    assert "--student.objective.anchor X" in shown and "weight of the denoising loss" in shown
    assert "anchored consistency" in shown  # the dry run's
    held = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["stages"]["student"]
    assert (held["method"], held["objective"]["anchor"], held["objective"]["anchor_below"]) == ("anchored", 0.5, 0.1)
    model = load_model(tmp_path / "run" / "student" / "model")
    assert (model.method, model.info.kind) == ("anchored consistency", "consistency")


def test_the_flow_map_method_of_the_page(extended, tmp_path):
    np.savez(tmp_path / "small.npz", np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8))
    (tmp_path / "mine.yaml").write_text("""
data: {source: small.npz}
network: {name: song, model_channels: 8, channel_mult: [1], num_blocks: 1, attn_resolutions: []}
stages: {student: {method: halves, steps: 2, batch_size: 2}}
""")
    flags = ["--output", "run", "--no-progress"]
    sampled = ["sample", "run", "--steps", 2, "--gamma", 0.5, "--num-images", 2, "--no-progress"]
    shown = extended("halves", ["train", "mine.yaml", "--dry-run"], ["train", "mine.yaml", *flags], sampled)
    assert "jumps from halves" in shown and "2 evaluations each" in shown
    model = load_model(tmp_path / "run" / "student" / "model")
    assert model.method == "jumps from halves" and model.info.flow_map and model.config.end_embedding


def test_the_network_of_the_page(extended, tmp_path):
    np.savez(tmp_path / "small.npz", arr_0=np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8))
    recipe = {
        "data": {"source": "small.npz"},
        "network": {"name": "pixel", "bumps": 5},
        "stages": {"student": {"method": "ect", "steps": 2, "batch_size": 4}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    sample = ["sample", "run", "--num-images", 3, "--no-progress", "--output", "out.npz"]
    out = extended("pixel", ["train", "tiny.yaml", "--output", "run"], ["inspect", "run", "--json"], sample)
    report = json.loads(out[out.index("\n{") : out.rindex("}") + 1])
    assert report["network"]["type"] == "PixelNetwork" and report["network"]["config"]["bumps"] == 5
    # The network's own embedding of the noise level is that of its row.
    assert report["noise"]["embedding"] == "edm" and report["image"] == {"size": 8, "channels": 1}
    folder = Path(report["path"])
    assert json.loads((tmp_path / folder / "unet" / "config.json").read_text())["_class_name"] == "PixelNetwork"
    assert np.load(tmp_path / "out.npz")["arr_0"].shape == (3, 8, 8, 1)


def test_the_format_of_the_page(extended, tmp_path):
    lines = [["convert", EMBEDDED, "digits.model"], ["inspect", "digits.model"]]
    for name, model in (("packed", "digits.model"), ("folder", EMBEDDED)):
        lines.append(["sample", model, "--num-images", 4, "--no-progress", "--output", f"{name}.npz"])
    assert "digits.model: packed model folder, fp16" in extended("packed", *lines)
    packed, folder = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("packed", "folder"))
    assert np.array_equal(packed, folder)


def test_the_metric_of_the_page(extended, tmp_path):
    """Evaluation, search and help have it."""
    images = np.random.default_rng(0).integers(0, 256, (200, 28, 28, 1), dtype=np.uint8)
    for name, part in (("samples", images[:80]), ("reference", images[80:] // 2)):
        np.savez(tmp_path / f"{name}.npz", part)
    flags = ["--reference", "reference.npz", "--feature-cache", "cache", "--no-progress"]
    search = ["search", *flags, "--metric", "md", "--num-images", 20, "--output", "search"]
    out = extended("centre", ["evaluate", "samples.npz", *flags, "--metrics", "md,fd"], search)
    assert "MD-MNIST" in out and "MD-MNIST of 20 fresh images, lower is better" in " ".join(out.split())
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert 0 < metrics["md"]["value"] < metrics["fd"]["value"] and metrics["md"]["standard_error"] > 0
    scores = json.loads((tmp_path / "search" / "search.json").read_text())["scores"]
    assert len(scores) > 3 and min(scores.values()) > 0


# ------------------------------------------------------------------------------------------------ both pages


def test_pages_show_commands():
    assert len(commands("methods.md")) >= 9


@pytest.mark.parametrize("words", commands("methods.md"), ids=" ".join)
def test_commands_parse(words):
    assert words[1] in ("train", "sample")
    if words[1] == "train":
        parse_run(words[2:])
    else:
        assert parse(words[2:], parameters_of(unistep.sample), ("model",), "unistep sample")["model"] == words[2]


@pytest.mark.parametrize("page_name", ["methods.md", "extending.md", "notation.md", "architecture.md"])
def test_links_lead_somewhere(page_name):
    text = (DOCS / page_name).read_text()
    for file, _, anchor in (link.partition("#") for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)):
        target = DOCS / file if file else DOCS / page_name
        assert target.exists(), file
        assert not anchor or anchor in headings(target), anchor
