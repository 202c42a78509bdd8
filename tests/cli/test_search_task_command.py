"""`unistep search --task` as a user meets it."""

import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unistep.editing.tasks import TASKS
from unistep.runtime.interrupt import Interrupted
from unistep.searching import edit_schedules as module
from unistep.workflows.models import EMBEDDED_TEACHER

WHOLE = ["--images", "data.npz", "--num_images", 20, "--steps", 1]


@pytest.fixture
def model(model_folder: Any, here: Path) -> Path:
    """Of 8x8 grey images, by the name `model`; and 50 images for it, and one alone."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    np.savez(here / "data.npz", pixels)
    Image.fromarray(pixels[0, ..., 0]).save(here / "image.png")
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:4] = 255
    Image.fromarray(mask).save(here / "mask.png")
    return Path(shutil.copytree(model_folder(sample_size=8, num_class_embeds=None), here / "model"))


@pytest.fixture
def search(run: Any, model: Path) -> Any:
    """search("inpaint", "--mask", "lower"): of that model, with few images."""
    return lambda task, *more: run("search", "model", "--task", task, *WHOLE, *more)


def record() -> dict[str, Any]:
    return json.loads(Path("search/search.json").read_text())


def test_what_is_found_can_be_given_to_edit(search: Any, run: Any, here: Path):
    outcome = search("inpaint", "--mask", "lower", "--steps", "1..2")
    assert outcome.code == 0 and outcome.err == "", outcome
    assert set(os.listdir("search")) == {"search.json", "curve.png"}
    lines = outcome.out.splitlines()
    heading = "model, inpaint: PSNR in dB of 20 fresh images, higher is better"
    assert heading in " ".join(outcome.out.split()) and "residual" in outcome.out and "the task's" in outcome.out
    found = [f["sigmas"] for f in record()["found"]]
    assert [len(own) for own in found] == [1, 2]
    assert lines[-2:] == [
        f"unistep edit inpaint --model model --mask lower --sigmas {','.join(f'{s:g}' for s in own)} --settle 3"
        for own in found
    ]
    assert lines[-3] == "all scores: search/search.json; drawn: search/curve.png"
    command = shlex.split(lines[-1])[1:]
    edited = run(*command, "--input", "image.png", "--output", "out.png")
    assert edited.code == 0 and "5 evaluations each" in edited.out, edited
    # The rows that are printed are those of the record.
    judged = record()["found"][0]["judged"]
    assert f"{judged[0]['off_the_known_part']:.3f}" in outcome.out
    assert judged[0]["on_images_of_the_search"] == max(
        value for own, value in record()["scores"].items() if "," not in own
    )


@pytest.mark.parametrize(
    ("task", "known"),
    [
        ("inpaint", {"mask": "mask.png"}),
        ("outpaint", {"margin": 2}),
        ("upscale", {"factor": "2x4"}),
        ("deblur", {"blur": 0.6}),
        ("compressed-sensing", {"share": 0.5}),
        ("upscale", {}),
    ],
)
def test_every_task(search: Any, run: Any, task: str, known: dict[str, Any]):
    flags = [word for flag, value in known.items() for word in (f"--{flag}", str(value))]
    outcome = search(task, *flags)
    assert outcome.code == 0, outcome
    (found,) = record()["found"]
    printed = shlex.split(outcome.out.splitlines()[-1])
    levels = ["--sigmas", f"{found['sigmas'][0]:g}", "--settle", str(TASKS[task].default.settle)]
    assert printed == ["unistep", "edit", task, "--model", "model", *flags, *levels]
    assert run(*printed[1:], "--input", "image.png", "--output", "out.png").code == 0
    settings = record()["settings"]
    assert settings["task"] == task and known.items() <= settings["measurement"].items()


def test_without_settling(search: Any):
    outcome = search("upscale", "--settle", 0)
    assert outcome.code == 0 and record()["settings"]["measurement"]["settle"] == 0
    assert "--settle" not in outcome.out
    assert "measurement" in search("upscale").err  # another search than that of the record


def test_other_measures(search: Any, model: Path, monkeypatch: pytest.MonkeyPatch):
    from unistep.searching.full_reference import FullReferenceMetric

    darkness = FullReferenceMetric("LPIPS", "lower", "0", lambda made, true: made.float().mean((1, 2, 3)))
    monkeypatch.setattr("unistep.searching.full_reference.lpips", lambda resources: darkness)
    outcome = search("upscale", "--metric", "lpips")
    assert outcome.code == 0 and "LPIPS of 20 fresh images, lower is better" in " ".join(outcome.out.split())
    scores = record()["scores"]
    assert scores[f"{record()['found'][0]['sigmas'][0]!r}"] == min(scores.values())


def test_a_colour_model(run: Any, model_folder: Any, here: Path):
    shutil.copytree(model_folder(sample_size=8, in_channels=3, out_channels=3, num_class_embeds=None), here / "colour")
    np.savez(here / "data.npz", np.random.default_rng(0).integers(0, 256, (50, 12, 16, 3), dtype=np.uint8))
    outcome = run("search", "colour", "--task", "colorize", *WHOLE)
    assert outcome.code == 0, outcome


def test_it_goes_on_and_never_measures_twice(search: Any, monkeypatch: pytest.MonkeyPatch):
    made = []
    make = module.make

    def stopped_at_the_fourth(*args: Any, **options: Any) -> Any:
        made.append(options["numbers"])
        if len(made) == 4:
            raise Interrupted(signal.SIGINT)
        return make(*args, **options)

    monkeypatch.setattr(module, "make", stopped_at_the_fourth)
    outcome = search("upscale")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err == "stopped by SIGINT; what was computed is kept in search; repeat the command to go on\n"
    whole = search("upscale")
    assert whole.code == 0 and len(made) == 1 + len(record()["scores"]) + len(record()["fresh"])
    count = len(made)
    assert search("upscale").out == whole.out and len(made) == count
    other = search("upscale", "--factor", 2)
    assert other.code == 2 and "is of a search that differs in measurement" in other.err, other


def test_refused_before_anything_is_made(refused: Any, model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "make", None)

    def no(*more: Any, task: str = "upscale", words: str) -> None:
        refused(["search", "model", "--task", task, *WHOLE, *more], words)

    listed = "inpaint, outpaint, colorize, upscale, deblur, compressed-sensing"
    no(task="denoise", words=f"--task denoise: must be one of {listed}")
    no(task="inpaint", words="--mask is missing; give the part to be painted, as lower")
    no("--mask", "nowhere.png", task="inpaint", words="--mask nowhere.png: there is no such file")
    no("--mask", "box:0,0,9,9", task="inpaint", words="does not lie in 8x8 pixels")
    no(task="colorize", words="colorize needs a model of colour images")
    no(task="deblur", words="--blur is missing")
    no("--factor", "3", task="upscale", words="--factor 3: the model's 8 pixels have no such parts; of use are 2, 4, 8")
    no("--blur", "1", words="--blur is for deblur, not for upscale; leave it out")
    no("--blur", "0", task="deblur", words="--blur 0 must lie above 0")
    no("--write", words="--write is not for --task: the levels of an edit are no part of a model")
    no("--reference", "mnist", words="--reference is not for --task, whose results are compared with their")
    no("--resolution", "8", words="--resolution is not for --task: images are brought to the model's size")
    no("--metric", "fd", words="--metric fd does not compare results with their images; give psnr, lpips, class")
    no("--num_images", "26", words="--num-images 26: as many fresh images judge the result, and data.npz has 50")
    no("--steps", "0", words="--steps 0: numbers of steps lie between 1 and 64")
    no("--images", "nowhere", words="--images nowhere: ")
    no("--lpips-vgg", "nowhere.pt", "--lpips-heads", "nowhere.pt", "--metric", "lpips", words="nowhere.pt")
    refused(["search", "model", "--task", "upscale"], "--images is missing; give whole images to edit and compare with")
    refused(["search", EMBEDDED_TEACHER, "--task", "upscale", *WHOLE], "is a diffusion model")
    refused(["search", "--reference", "mnist", "--metric", "psnr"], "--metric psnr compares edits with images")
    refused(["search", "--reference", "mnist", "--mask", "lower"], "--mask is for the search for an edit's levels")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    no(words="drawn with matplotlib: pip install 'unistep[evaluate]'")
