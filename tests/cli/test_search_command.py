"""`unistep search` as a user meets it."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.cli.main import COMMANDS
from unistep.formats.model_folder.folder import load_model
from unistep.generation.plan import consistency_plan, default_plan
from unistep.runtime.interrupt import Interrupted
from unistep.searching import sampler_schedules as module
from unistep.workflows.models import EMBEDDED_TEACHER, open_any

FILES = {"search.json", "curve.png"}


def test_is_a_command():
    assert "search" in COMMANDS


@pytest.fixture
def model(model_folder: Any, here: Path) -> Path:
    """Of 28x28 images, which the digits' features take, by the name `model`."""
    return Path(shutil.copytree(model_folder(sample_size=28, patch_size=7), here / "model"))


@pytest.fixture
def search(run: Any, model: Path, here: Path) -> Any:
    """search("--steps", 3): of that model, with few images."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 28, 28, 1), dtype=np.uint8)
    np.savez(here / "data.npz", pixels)
    options = ["model", "--reference", "data.npz", "--num_images", 32, "--feature_cache", "cache"]
    return lambda *more: run("search", *options, *more)


def table_of(out: str) -> list[list[str]]:
    """The cells of the printed rows; those of a line that is broken are joined."""
    lines = [[c.strip() for c in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    rows: list[list[str]] = []
    for cells in lines:
        if cells[2]:
            rows.append(cells)
        else:
            rows[-1] = [" ".join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
    return rows


def record(output: str = "search") -> dict[str, Any]:
    return json.loads(Path(output, "search.json").read_text())


def lowest(scores: dict[str, float], steps: int) -> list[int]:
    of_steps = [text for text in scores if len(text.split(",")) == steps]
    return [int(i) for i in min(of_steps, key=lambda text: scores[text]).split(",")]


def test_a_search(search: Any, here: Path):
    outcome = search("--steps", "2..3")
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    assert set(os.listdir("search")) == FILES
    found = record()
    assert [f["timesteps"] for f in found["found"]] == [lowest(found["scores"], 2), lowest(found["scores"], 3)]
    rows = table_of(outcome.out)
    best = [(f["judged"][0]["names"], f["timesteps"]) for f in found["found"]]
    expected = [[str(len(own)), ", ".join(names), ",".join(map(str, own))] for names, own in best]
    assert [row[:3] for row in rows if row[0]] == expected
    even = next(row for row in rows if "evenly spaced" in row[1])
    assert even[2] == "0,19" and "±" in even[3]
    assert "all scores: search/search.json; drawn: search/curve.png\n" in outcome.out
    assert "FD-MNIST of 32 fresh images, lower is better" in " ".join(outcome.out.split())
    with Image.open("search/curve.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000


def test_it_goes_on_and_never_measures_twice(search: Any, monkeypatch: pytest.MonkeyPatch):
    made = []
    generate = module.generate

    def stopped_at_the_fourth(denoiser: Any, plan: Any, shape: Any, part: range, **options: Any) -> Any:
        made.append((plan.sigmas, part))
        if len(made) == 4:
            raise Interrupted(signal.SIGINT)
        return generate(denoiser, plan, shape, part, **options)

    monkeypatch.setattr(module, "generate", stopped_at_the_fourth)
    outcome = search()
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err == "stopped by SIGINT; what was computed is kept in search; repeat the command to go on\n"
    assert os.listdir("search") == ["search.json"] and len(record()["scores"]) == 3
    whole = search()
    assert whole.code == 0, whole
    assert len(made) == len(set(made)) + 1
    count = len(made)
    assert search().out == whole.out and len(made) == count


def test_another_search_in_the_same_place(search: Any, refused: Any):
    assert search().code == 0
    before = Path("search/search.json").read_bytes()
    for more, words in (
        (["--seed", 1], "seed (0, now 1)"),
        (["--metric", "kd"], "metric (FD-MNIST, now KD-MNIST)"),
        (["--num_images", 33], "number of images (32, now 33)"),
    ):
        outcome = search(*more)
        assert outcome.code == 2 and outcome.err.count("\n") == 1
        assert words in outcome.err and "delete it, or give another --output" in outcome.err
        assert Path("search/search.json").read_bytes() == before
    assert search("--seed", 1, "--output", "other/place").code == 0
    assert set(os.listdir("other/place")) == FILES


@pytest.mark.parametrize("metric", ["kd", "is"])
def test_other_measures(search: Any, metric: str):
    outcome = search("--metric", metric)
    assert outcome.code == 0, outcome
    better = "lower" if metric == "kd" else "higher"
    assert f"of 32 fresh images, {better} is better" in " ".join(outcome.out.split())
    scores = record()["scores"]
    choose = min if better == "lower" else max
    assert scores[",".join(map(str, record()["found"][0]["timesteps"]))] == choose(scores.values())


def test_the_inception_score_needs_no_reference(run: Any, model: Path):
    outcome = run("search", "model", "--metric", "is", "--num_images", 32, "--features", "mnist")
    assert outcome.code == 0, outcome


# ---------------------------------------------------------------------------------------------------- keeping schedules


def test_what_was_found_is_kept_in_the_model(search: Any, run: Any, model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "worth_keeping", lambda found, better: True)
    before = {p: p.read_bytes() for p in model.rglob("*") if p.is_file()}
    outcome = search("--steps", "2,3", "--write")
    assert outcome.code == 0, outcome
    two, three = (f["timesteps"] for f in record()["found"])
    listed = " and ".join(",".join(map(str, own)) for own in (two, three))
    config = Path("model/scheduler/scheduler_config.json")
    assert outcome.out.endswith(f"written: timesteps {listed} to {config}\n")
    info = load_model(model).info
    assert info.timesteps == tuple(two) and info.schedules == (tuple(three),)
    grid = (info.num_train_timesteps, info.sigma_min, info.sigma_max, info.rho)
    assert default_plan(info, 3) == consistency_plan(three, *grid)
    assert [p for p, content in before.items() if p.read_bytes() != content] == [model / config.relative_to("model")]
    assert {p for p in model.rglob("*") if p.is_file()} == set(before)
    assert f"timesteps {','.join(map(str, three))} for 3 steps" in run("inspect", "model").out
    # The same search goes on in spite of what it has written.
    monkeypatch.setattr(module, "generate", None)
    assert search("--steps", "2").code == 0


def test_what_is_no_better_is_not_kept(search: Any, model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "worth_keeping", lambda found, better: False)
    before = (model / "scheduler" / "scheduler_config.json").read_bytes()
    outcome = search("--write")
    assert outcome.code == 0 and "not written: for 2 steps" in outcome.out and "written: timesteps" not in outcome.out
    assert (model / "scheduler" / "scheduler_config.json").read_bytes() == before


# ------------------------------------------------------------------------------------------------------------- refusals


def test_refused_before_anything_is_made(refused: Any, here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "generate", None)
    mnist = ["--reference", "mnist-test"]
    refused(["search"], "--reference is missing; give a dataset or statistics")
    refused(["search", *mnist, "--steps", 1], "--steps 1", "nothing to choose")
    refused(["search", *mnist, "--steps", 40], "--steps 40", "grid has 39 levels above sigma_min; give fewer")
    refused(["search", *mnist, "--num_images", 19], "--num-images 19 must be at least 20")
    refused(["search", *mnist, "--metric", "fid"], "--metric fid: must be one of fd, sfd")
    refused(["search", *mnist, "--metric", "sfd"], "sfd needs spatial features, which mnist lacks")
    refused(["search", *mnist, "--write"], "the embedded model is part of the package", "unistep convert", "FOLDER")
    refused(["search", EMBEDDED_TEACHER, *mnist], "is a diffusion model, whose solver takes any number of --steps")
    refused(["search", "nowhere", *mnist], "nowhere does not exist")
    refused(["search", "", *mnist], "MODEL is empty")
    refused(["search", "--reference", "nowhere.npz"], "nowhere.npz")
    refused(["search", "--reference", EMBEDDED_TEACHER], "is a model; give a dataset")
    refused(["search", *mnist, "--resolution", 32], "has images of 28x28x1, mnist-test of 32x32x1", "--resolution 28")
    refused(["search", *mnist, "--features", "mnits"], "did you mean mnist?")
    (here / "file").touch()
    refused(["search", *mnist, "--output", "file"], "--output file is a file; give a folder")
    refused(["search", *mnist, "--output="], "--output is empty; give a folder")
    refused(["search", *mnist, "--output", "file/search"], "cannot write file/search", "file is not a folder")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    refused(["search", *mnist], "drawn with matplotlib: pip install 'unistep[evaluate]'")


def test_a_place_that_holds_something_else(search: Any, here: Path):
    (here / "search").mkdir()
    (here / "search" / "search.json").write_text("{}")
    outcome = search()
    assert outcome.code == 2 and "search.json is not the record of a search, or is damaged; delete it" in outcome.err
    assert (here / "search" / "search.json").read_text() == "{}"


def test_a_batch_that_is_too_large(search: Any, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, "generate", full)
    outcome = search("--batch_size", 999)
    assert outcome.code == 2 and "--batch-size 999: too many for the memory of cpu; give fewer" in outcome.err


def test_the_model_keeps_what_the_search_does_not_touch(search: Any, model: Path):
    """The network computes in another precision in the search; the folder's weights stay as they are."""
    before = (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert search("--dtype", "bf16").code == 0
    assert (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert record()["settings"]["dtype"] == "bfloat16"
    assert open_any(model).info.timesteps is None
