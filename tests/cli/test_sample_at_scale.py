"""`unistep sample` with many images: over several processes, in any precision, into every kind of output."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.cli.main import main
from unistep.data import open_dataset
from unistep.formats.model_folder.folder import load_model
from unistep.generation import collect
from unistep.generation.generate import generate
from unistep.generation.labels import random_labels
from unistep.generation.plan import default_plan
from unistep.generation.shards import Shards, shards_folder

SCRIPT = Path(__file__).with_name("sample_process.py")
DEADLINE = 120
TOTAL = 1200


@pytest.fixture(scope="module")
def model(model_folder) -> Path:
    return model_folder(num_class_embeds=10)


@pytest.fixture(scope="module")
def several(start_script, model):
    """several(n, folder, *options): that many processes of one command; each says in the folder's said-RANK."""

    def start(processes: int, folder: Path, *options: str) -> list:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        names = {"arguments": [str(model), *options], "processes": processes, "port": port}
        said = [str(folder / f"said-{rank}") for rank in range(processes)]
        return [start_script(SCRIPT, rank=rank, said=said[rank], **names) for rank in range(processes)]

    return start


@pytest.fixture(scope="module")
def alone(several, tmp_path_factory) -> Path:
    """The images of one process."""
    folder = tmp_path_factory.mktemp("alone")
    made = several(1, folder, "--num-images", str(TOTAL), "--output", str(folder / "images.npz"))
    assert exit_codes(made) == [0]
    return folder / "images.npz"


def exit_codes(started: list) -> list[int | None]:
    for process in started:
        process.join(DEADLINE)
    return [process.exitcode for process in started]


def visible(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.startswith("said-")}


def assert_begins(longer: Path, shorter: Path, count: int) -> None:
    with np.load(longer) as wanted, np.load(shorter) as made:
        assert made.files == wanted.files == ["arr_0", "arr_1"]
        for name in made.files:
            np.testing.assert_array_equal(made[name], wanted[name][:count])
            assert len(made[name]) == count


def test_the_images_are_the_models(alone, model):
    """Image i with label i of the file is what the model makes of noise i and label i."""
    opened = load_model(model)
    with np.load(alone) as arrays:
        labels = torch.from_numpy(arrays["arr_1"])
        images = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, random_labels(0, range(TOTAL), 10))
    some = [0, 255, 256, 700, TOTAL - 1]
    (expected,) = generate(opened.denoiser, default_plan(opened.info), (1, 16, 16), some, labels=labels[some])
    assert torch.equal(images[some], expected)


def test_npz_of_two_processes(several, alone, here):
    options = ("--num-images", "600", "--output", "images.npz", "--batch-size", "7")
    assert exit_codes(several(2, here, *options)) == [0, 0]
    assert_begins(alone, here / "images.npz", 600)
    assert visible(here) == {"images.npz"}
    assert (here / "said-0").read_text().startswith("600 images, 1 evaluation each, 0.0")
    assert (here / "said-1").read_text() == ""


@pytest.mark.parametrize("name", ["images", "grid.png"])
def test_other_outputs_of_three_processes(name, several, alone, here, model):
    assert exit_codes(several(3, here, "--num-images", "70", "--output", name)) == [0, 0, 0]
    if name == "images":
        made, wanted = open_dataset(name), open_dataset(str(alone))
        assert torch.equal(made.images, wanted.images[:70])
        assert torch.equal(made.labels, wanted.labels[:70])
    else:
        main(["sample", str(model), "--num-images", "70", "--output", str(here.parent / "alone.png")])
        with Image.open(name) as made, Image.open(here.parent / "alone.png") as wanted:
            assert np.array_equal(np.asarray(made), np.asarray(wanted))
    assert visible(here) == {name}


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_fails_the_command(victim, several, alone, here, run, model):
    """The other hears of it without a launcher; what both have made is kept for any number of processes."""
    options = ("--num-images", str(TOTAL), "--output", "images.npz")
    started = several(2, here, *options)
    parts = shards_folder(here / "images.npz")
    first_of_the_victim = ("000000000-*.part", "00000059*.part")[victim]
    for _ in range(10_000):  # a minute at least
        if list(parts.glob(first_of_the_victim)):
            break
        started[0].join(0.005)
    started[victim].kill()
    codes = exit_codes(started)
    assert (codes[victim], codes[1 - victim]) == (-9, 2)
    said = (here / f"said-{1 - victim}").read_text()
    assert said == "unistep: error: another process of this run has ended early; see what it printed, then repeat\n"
    assert not (here / "images.npz").exists()
    kept = Shards(here / "images.npz", TOTAL, (1, 16, 16)).count()
    assert kept > 592, "all of the other's share, and some of the victim's"
    outcome = run("sample", model, *options)
    assert (outcome.code, outcome.err) == (0, f"note: going on: {kept} of {TOTAL} images are there\n")
    assert (here / "images.npz").read_bytes() == alone.read_bytes()


def test_what_the_first_refuses_fails_all(several, alone, here):
    """The settings are checked by one process; the others neither wait for ever nor go on."""
    unfinished = Shards(here / "images.npz", TOTAL, (1, 16, 16))
    unfinished.claim({"seed": 1})
    unfinished.write(0, torch.zeros(3, 1, 16, 16, dtype=torch.uint8))
    unfinished.flush()
    unfinished.release()
    assert exit_codes(several(2, here, "--num-images", str(TOTAL), "--output", "images.npz")) == [2, 2]
    assert "give --restart to delete them" in (here / "said-0").read_text()
    assert unfinished.count() == 3


@pytest.fixture
def network_calls(monkeypatch) -> list:
    """The dtypes of the networks that images were made with."""
    seen, make = [], collect.generate

    def counting(denoiser, *args, **kwargs):
        seen.append({p.dtype for p in denoiser.parameters()})
        return make(denoiser, *args, **kwargs)

    monkeypatch.setattr(collect, "generate", counting)
    return seen


def test_dtype(model, here, run, network_calls):
    for dtype in ("fp32", "bf16"):
        assert run("sample", model, "--num-images", 40, "--output", f"{dtype}.npz", "--dtype", dtype).code == 0
    assert network_calls[0] == {torch.float32}
    assert network_calls[-1] == {torch.float32, torch.bfloat16}, "the head stays in fp32"
    full, half = (open_dataset(f"{dtype}.npz").images.int() for dtype in ("fp32", "bf16"))
    difference = (full - half).abs()
    assert 0 < difference.float().mean() < 4


def test_nothing_is_made_for_a_place_that_cannot_be_written(model, here, refused, network_calls):
    (here / "file").write_text("in the way")
    for name in ("grid.png", "images.npz", "images"):
        for total in (10, 100):
            command = ["sample", model, "--num-images", total, "--output", f"file/{name}"]
            refused(command, f"cannot write file/{name}: ", "choose another --output")
    assert network_calls == []


def test_a_folder_of_others_is_refused(model, here, refused, network_calls):
    shutil.copytree(model, here / "photos")
    refused(["sample", model, "--output", "photos"], "photos holds README.md, which is not of this command")
    assert network_calls == []


@pytest.mark.parametrize("name", ["cuda:99", "tpu"])
def test_a_device_that_is_not_there(name, refused):
    refused(["sample", "--device", name], f"--device {name}")


def test_out_of_memory(model, here, refused, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(collect, "generate", full)
    refused(["sample", model, "--batch-size", 512], "--batch-size 512: too many for the memory of cpu; give fewer")


def test_two_runs_of_one_output(model, here, refused, network_calls):
    other = Shards(here / "images.npz", 100, (1, 16, 16))
    other.claim({})
    refused(["sample", model, "--num-images", 100, "--output", "images.npz"], "is being written by another run")
    assert network_calls == []


def test_the_folder_tells_what_it_was_made_with(model, here, run):
    assert run("sample", model, "--num-images", 3, "--output", "images", "--seed", 5).code == 0
    settings = json.loads((here / "images" / "dataset.json").read_text())["settings"]
    assert settings["seed"] == 5
    assert settings["sampler"] == "ConsistencyPlan"
    assert settings["dtype"] == "float32"
