"""`unistep evaluate`: numbers with their intervals, a file that says what they depend on, and clear refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.data import open_dataset


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory) -> Path:
    """The cache lies beside the folder that the command runs in, not in it."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "unistep" / "features"


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return open_dataset("mnist-test").images


@pytest.fixture
def files(here, digits) -> Path:
    """real.npz and fake.npz with 600 and 400 digits, fake ones blurred, and a folder of 40 PNGs."""
    for name, images in (("real", digits[:600]), ("fake", digits[1000:1400] // 2)):
        np.savez(here / f"{name}.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
    (here / "folder").mkdir()
    for i, image in enumerate(digits[:40]):
        Image.fromarray(image[0].numpy()).save(here / "folder" / f"{i:03d}.png")
    return here


def metrics(path: str = "metrics.json") -> dict[str, dict[str, float]]:
    return json.loads(Path(path).read_text())["metrics"]


def test_files_against_files(run, files):
    done = run("evaluate", "fake.npz", "--reference", "real.npz")
    assert (done.code, done.err) == (0, "")
    for words in ("400 images of fake.npz against real.npz", "FD-MNIST", "95% interval", "precision", "metrics.json"):
        assert words in done.out
    assert "FID" not in done.out
    found = metrics()
    assert found["fd"]["value"] > 1 and found["precision"]["value"] < 1
    for entry in found.values():
        assert entry["interval_95"][0] <= entry["value"] <= entry["interval_95"][1]
    assert {p.name for p in files.iterdir()} == {"real.npz", "fake.npz", "folder", "metrics.json"}


def test_the_embedded_model_and_more_of_it(run, here, cache):
    options = ["--reference", "mnist-test", "--metrics", "fd,is", "--seed", 3]
    assert run("evaluate", *options, "--num-images", 512).code == 0
    files = {p: p.stat().st_mtime_ns for p in cache.rglob("*.npy")}
    assert run("evaluate", *options, "--num-images", 600, "--output", "more.json").code == 0
    assert {p: p.stat().st_mtime_ns for p in files} == files  # the first 512 were not made again
    few, more = metrics(), metrics("more.json")
    assert few["fd"]["count"] == 512 and more["fd"]["count"] == 600
    content = json.loads(Path("more.json").read_text())
    assert content["samples"]["evaluations"] == 1 and content["samples"]["seed"] == 3
    assert content["features"]["name"] == "mnist" and len(content["features"]["sha256"]) == 64
    assert not list(here.glob("*.npz")) and not list(here.glob("*.png"))


def test_the_plan_counts(run, here):
    for name, flags in (("one", ["--steps", 1]), ("two", ["--timesteps", "0,22"]), ("label", ["--class-labels", "3"])):
        done = run(
            "evaluate",
            "--reference",
            "mnist-test",
            "--metrics",
            "fd",
            "--num-images",
            64,
            "--output",
            f"{name}.json",
            *flags,
        )
        assert done.code == 0, done.err
    one, two, label = (metrics(f"{name}.json")["fd"]["value"] for name in ("one", "two", "label"))
    assert len({one, two, label}) == 3 and label > one


def test_statistics_can_be_saved_and_used(run, files):
    assert run("evaluate", "fake.npz", "--reference", "real.npz", "--save-reference", "stats.npz").code == 0
    whole = metrics()
    done = run("evaluate", "fake.npz", "--reference", "stats.npz", "--output", "again.json")
    assert done.code == 0 and "kd" not in metrics("again.json")
    assert metrics("again.json")["fd"] == whole["fd"]


def test_copies_with_a_picture(run, files):
    done = run("evaluate", "folder", "--reference", "real.npz", "--metrics", "nn")
    assert done.code == 0 and "metrics-neighbours.png" in done.out
    assert metrics()["copies"]["value"] == 1
    with Image.open("metrics-neighbours.png") as picture:
        assert picture.width > 500


def test_the_metrics_may_be_named(run, files):
    done = run("evaluate", "fake.npz", "--reference", "real.npz", "--metrics", "kd, pr", "--num-images", 100)
    assert done.code == 0
    assert metrics().keys() == {"kd", "precision", "recall"}
    assert run("evaluate", "fake.npz", "--metrics", "is").code == 0
    assert metrics().keys() == {"is"}


def test_few_samples_are_warned_of(run, files):
    done = run("evaluate", "folder", "--reference", "real.npz", "--metrics", "fd")
    assert done.code == 0
    assert done.err.startswith("warning: FD-MNIST is biased: 40 samples") and done.err.count("\n") == 1


REFUSED = {
    "no reference": (["fake.npz"], ["--reference is missing; give"]),
    "no such samples": (["fakes.npz", "--reference", "real.npz"], ["fakes.npz", "did you mean fake.npz?"]),
    "no such reference": (["fake.npz", "--reference", "rael.npz"], ["rael.npz", "did you mean real.npz?"]),
    "empty samples": (["", "--reference", "real.npz"], ["SAMPLES is empty"]),
    "empty reference": (["fake.npz", "--reference", ""], ["--reference is empty"]),
    "no network": (["colour.npz", "--reference", "colour.npz"], ["cannot download", "--features effnet-lite0"]),
    "empty folder": (["empty", "--reference", "real.npz"], ["empty: no images are in it"]),
    "floats": (["floats.npz", "--reference", "real.npz"], ["floats.npz", "float32, not uint8", "0 to 255"]),
    "nan": (["fake.npz", "--reference", "nan.npz"], ["nan.npz: mu holds NaN"]),
    "mixed sizes": (["mixed", "--reference", "real.npz"], ["28x28", "20x20", "resolution"]),
    "other size": (["small.npz", "--reference", "real.npz"], ["20x20x1", "28x28x1", "--resolution 20"]),
    "colour": (["colour.npz", "--reference", "real.npz"], ["28x28x3", "28x28x1", "--channels 3"]),
    "unreadable": (["broken", "--reference", "real.npz"], ["001.png", "cannot be read as an image", "--skip-bad"]),
    "not an npz": (["text.npz", "--reference", "real.npz"], ["text.npz", "damaged or no .npz"]),
    "damaged statistics": (["fake.npz", "--reference", "text.npz"], ["text.npz"]),
    "others' statistics": (["fake.npz", "--reference", "published.npz"], ["--features inception", "not mnist"]),
    "fid": (["fake.npz", "--reference", "real.npz", "--metrics", "fid"], ["--metrics fid is computed from", "name fd"]),
    "unknown measure": (["fake.npz", "--reference", "real.npz", "--metrics", "pc"], ["--metrics pc is unknown"]),
    "unknown features": (["fake.npz", "--reference", "real.npz", "--features", "incepton"], ["mean inception?"]),
    "resize": (["fake.npz", "--reference", "real.npz", "--resize", "lanczos"], ["be one of legacy-tensorflow, clean"]),
    "too many": (["fake.npz", "--reference", "real.npz", "--num-images", 401], ["--num-images 401: fake.npz has 400"]),
    "one": (["fake.npz", "--reference", "real.npz", "--num-images", 1], ["--num-images 1 must be at least 2"]),
    "steps of images": (["fake.npz", "--reference", "real.npz", "--steps", 2], ["--steps is for models", "fake.npz"]),
    "resolution of a model": (["--reference", "real.npz", "--resolution", 32], ["28x28x1", "real.npz of 32x32x1"]),
    "a model as the reference": (["fake.npz", "--reference", "model"], ["model is a model", "unistep sample"]),
    "output": (["fake.npz", "--reference", "real.npz", "--output", "metrics.txt"], ["--output metrics.txt", ".json"]),
    "output's place": (["fake.npz", "--reference", "real.npz", "--output", "real.npz/m.json"], ["is not a folder"]),
    "save_reference": (["fake.npz", "--reference", "real.npz", "--save-reference", "a.txt"], ["ends in .npz"]),
    "unknown flag": (["fake.npz", "--refrence", "real.npz"], ["--refrence", "did you mean --reference?"]),
    "nothing to save": (
        ["fake.npz", "--reference", "ours.npz", "--save-reference", "a.npz"],
        ["--save-reference needs a --reference of images"],
    ),
}  # fmt: skip


@pytest.fixture
def garbage(files, run, digits):
    shutil.copytree(files / "folder", files / "broken")
    (files / "broken" / "001.png").write_bytes(b"no image")
    shutil.copytree(files / "folder", files / "mixed")
    Image.new("L", (20, 20)).save(files / "mixed" / "002.png")
    (files / "empty").mkdir()
    (files / "text.npz").write_text("hello")
    np.savez(files / "floats.npz", arr_0=np.random.default_rng(0).normal(size=(9, 28, 28, 1)).astype(np.float32))
    np.savez(files / "small.npz", arr_0=np.zeros((50, 20, 20, 1), np.uint8))
    np.savez(files / "colour.npz", arr_0=np.zeros((50, 28, 28, 3), np.uint8))
    np.savez(files / "nan.npz", mu=np.full(128, np.nan), sigma=np.eye(128))
    np.savez(files / "published.npz", mu=np.zeros(128), sigma=np.eye(128))
    if not (files / "ours.npz").exists():
        assert (
            run("evaluate", "folder", "--reference", "real.npz", "--metrics", "fd", "--save-reference", "ours.npz").code
            == 0
        )
        Path("metrics.json").unlink()
    return files


@pytest.mark.parametrize("case", REFUSED)
def test_refused(refused, garbage, case, model_folder):
    arguments, words = REFUSED[case]
    if case == "a model as the reference":
        shutil.copytree(model_folder(), garbage / "model")
    refused(["evaluate", *arguments], *words)


def test_statistics_of_another_network(refused, garbage):
    with np.load("ours.npz") as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"])) | {"key": "0", "features": "dinov2", "resize": "clean"}
    np.savez("others.npz", **(arrays | {"about": np.array(json.dumps(about))}))
    refused(
        ["evaluate", "fake.npz", "--reference", "others.npz"],
        "made with dinov2",
        "not with the mnist",
        "do not compare",
    )


def test_bad_files_can_be_left_out(run, garbage):
    done = run("evaluate", "broken", "--reference", "real.npz", "--metrics", "fd", "--skip-bad")
    assert done.code == 0 and metrics()["fd"]["count"] == 39
    assert run("evaluate", "mixed", "--reference", "real.npz", "--metrics", "fd", "--resolution", 28).code == 0


def test_help_tells_every_flag(run):
    done = run("evaluate", "--help")
    assert done.code == 0
    for flag in ("--reference", "--features", "--metrics", "--num-images", "--save-reference", "--resize", "--steps"):
        assert flag in done.out
    assert not [line for line in done.out.splitlines() if line.endswith("-")]  # flags are whole


def test_a_signal_keeps_the_features(here, cache):
    command = [sys.executable, "-m", "unistep", "evaluate", "--reference", "mnist-test", "--metrics", "fd"]
    process = subprocess.Popen([*command, "--num-images", "20000"], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any(cache.rglob("*.npy")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith("features made so far are kept; repeat the command to go on")
    assert not Path("metrics.json").exists()
    assert os.listdir(here) == []
