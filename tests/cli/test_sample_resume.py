"""`unistep sample`, broken off at any instant and repeated, gives what an undisturbed run gives, to the bit."""

import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from unistep.cli.main import main
from unistep.data import open_dataset
from unistep.generation import collect
from unistep.generation import settings as run_settings
from unistep.generation.png_folder import PngFolder
from unistep.generation.shards import Shards, shards_folder

SHAPE = (1, 16, 16)
SCRIPT = Path(__file__).with_name("sample_process.py")
DEADLINE = 120


@pytest.fixture(scope="module")
def model(model_folder) -> Path:
    return model_folder(num_class_embeds=10)


def arguments(model: Path, output: str, total: int = 200, batch_size: int = 64) -> list[str]:
    what = ["--num-images", str(total), "--seed", "3", "--batch-size", str(batch_size)]
    return [str(model), *what, "--output", output]


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """undisturbed(n): the .npz of a run of n images."""
    made: dict[int, Path] = {}

    def make(total: int = 200) -> Path:
        if total not in made:
            made[total] = tmp_path_factory.mktemp("undisturbed") / "images.npz"
            main(["sample", *arguments(model, str(made[total]), total)])
        return made[total]

    return make


@pytest.fixture
def interrupt_after(monkeypatch):
    """interrupt_after(n, number): the command sends itself a signal when it makes tile n + 1."""

    make = collect.generate

    def arrange(tiles: int, number: int = signal.SIGINT) -> None:
        monkeypatch.setattr(collect, "generate", _interrupted_after(tiles, make, number))

    return arrange


def _interrupted_after(tiles: int, make, number: int = signal.SIGINT):
    calls = iter(range(tiles))

    def generate(*args, **kwargs):
        if next(calls, None) is None:
            os.kill(os.getpid(), number)
        return make(*args, **kwargs)

    return generate


def stored(output: Path) -> int:
    """How many images an unfinished run has, whose process may be writing more, or removing what is finished."""
    unfinished = (Shards if output.suffix == ".npz" else PngFolder)(output, 600, SHAPE)
    try:
        return unfinished.count() if (unfinished.folder / "settings.json").exists() else 0
    except FileNotFoundError:
        return 0


def assert_undisturbed(output: Path, undisturbed: Path) -> None:
    if output.suffix == ".npz":
        assert output.read_bytes() == undisturbed.read_bytes()
    else:
        made, wanted = open_dataset(str(output)), open_dataset(str(undisturbed))
        assert made.images.equal(wanted.images)
        assert made.labels.equal(wanted.labels)
    assert not shards_folder(output).exists()
    assert not (output / ".parts").exists()


@pytest.mark.parametrize(("seed", "name"), [(0, "images.npz"), (1, "images.npz"), (2, "images")])
def test_sigkill_at_random_moments(seed, name, model, undisturbed, start_script, here, run):
    """Killed three times, each time repeated with another batch size."""
    moments, output = random.Random(seed), here / name
    for batch_size in (64, 7, 300):
        before = stored(output)
        own = arguments(model, name, 600, batch_size)
        process = start_script(SCRIPT, arguments=own, said="said.txt", rank=0, processes=1, port=0)
        more = moments.choice([0, 1, 200])
        for _ in range(30_000):  # a minute at least
            if stored(output) >= min(before + more, 500) or not process.is_alive():
                break
            process.join(0.002)
        process.join(moments.uniform(0, 0.1))
        process.kill()
        process.join(DEADLINE)
    kept = stored(output)
    (here / "said.txt").unlink(missing_ok=True)
    outcome = run("sample", *arguments(model, name, 600))
    assert outcome.code == 0, outcome
    assert kept == 0 or f"note: going on: {kept} of 600 images are there" in outcome.err
    assert_undisturbed(output, undisturbed(600))
    assert [p.name for p in here.iterdir()] == [name]


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGTERM, 143, "images.npz"), (signal.SIGINT, 130, "images")]
)
def test_a_signal_keeps_what_is_made(number, code, name, model, undisturbed, here, run, interrupt_after):
    interrupt_after(6, number)
    outcome = run("sample", *arguments(model, name))
    assert outcome.code == code
    word = number.name
    assert outcome.err == f"stopped by {word}; 96 of 200 images made so far are kept; repeat the command to go on\n"
    assert outcome.out == ""
    assert stored(here / name) == 96
    interrupt_after(1000)
    again = run("sample", *arguments(model, name, batch_size=7))
    assert again.code == 0
    assert again.err == "note: going on: 96 of 200 images are there\n"
    assert again.out.startswith("200 images, 1 evaluation each, 0.0") and again.out.endswith(f": {name}\n")
    assert_undisturbed(here / name, undisturbed())


@pytest.mark.parametrize("name", ["images.npz", "images", "grid.png"])
def test_a_signal_before_the_first_image(name, model, here, run, interrupt_after):
    interrupt_after(0)
    outcome = run("sample", *arguments(model, name))
    assert (outcome.code, outcome.err) == (130, "stopped by SIGINT; nothing was written\n")
    assert list(here.iterdir()) == []


def test_a_signal_before_the_output_is_ones_own(model, here, run, monkeypatch):
    """What another run has just begun stays."""
    other = Shards(here / "images.npz", 200, SHAPE)
    other.claim({})
    monkeypatch.setattr(run_settings, "weights_digest", lambda module: os.kill(os.getpid(), signal.SIGINT))
    outcome = run("sample", *arguments(model, "images.npz"))
    assert (outcome.code, outcome.err) == (130, "stopped by SIGINT; nothing was written\n")
    assert sorted(p.name for p in other.folder.iterdir()) == ["lock", "settings.json"]


@pytest.fixture(scope="module")
def broken_off_once(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("broken-off")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "generate", _interrupted_after(6, collect.generate))
        with pytest.raises(SystemExit):
            main(["sample", *arguments(model, str(folder / "images.npz"))])
    return folder


@pytest.fixture
def broken_off(broken_off_once, here) -> Path:
    """images.npz, of which 96 images are made."""
    shutil.copytree(broken_off_once, here, dirs_exist_ok=True)
    return here / "images.npz"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--seed", 4], ["seed (3, now 4)", "class labels"]),
        (["--steps", 2], ["sigmas ("]),
        (["--num-images", 10], ["num_images (200, now 10)"]),
        (["--class-labels", 7], ["differs in class labels;"]),
        (["--dtype", "bf16"], ["dtype (float32, now bfloat16)"]),
    ],
)
def test_other_settings_are_refused(change, words, model, broken_off, refused):
    line = refused(["sample", *arguments(model, "images.npz"), *change], "96 of 200 images for images.npz", *words)
    assert line.endswith("repeat its command to go on, or give --restart to delete them\n")


def test_another_model_is_refused(model_folder, broken_off, refused):
    other = model_folder(num_class_embeds=10, seed=1)
    refused(["sample", *arguments(other, "images.npz")], "differs in model's weights;")


@pytest.mark.parametrize("switch", [["--restart"]])
def test_restart(switch, model, broken_off, run, here):
    outcome = run("sample", *arguments(model, "images.npz"), "--num-images", "20", *switch)
    assert (outcome.code, outcome.err) == (0, "")
    assert len(open_dataset("images.npz").images) == 20
    assert [p.name for p in here.iterdir()] == ["images.npz"]


def test_a_damaged_file_is_remade(model, undisturbed, broken_off, run):
    for part in shards_folder(broken_off).glob("*.part"):
        part.write_bytes(part.read_bytes()[:-1])
    outcome = run("sample", *arguments(model, "images.npz"))
    assert (outcome.code, outcome.err) == (0, "")
    assert_undisturbed(broken_off, undisturbed())


def test_all_were_there(model, undisturbed, broken_off, run, monkeypatch):
    """Killed when nothing was left but to put the files together."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _killed)
        with pytest.raises(_Killed):
            run("sample", *arguments(model, "images.npz"))
    outcome = run("sample", *arguments(model, "images.npz"))
    assert outcome.err == "note: going on: 200 of 200 images are there\n"
    assert outcome.out == "200 images, 1 evaluation each: images.npz\n"
    assert_undisturbed(broken_off, undisturbed())


class _Killed(BaseException):
    """No more of this process."""


def _killed(file):
    raise _Killed


def test_a_finished_output_is_replaced_when_the_next_is_complete(model, undisturbed, here, run, interrupt_after):
    former = undisturbed().read_bytes()
    (here / "images.npz").write_bytes(former)
    interrupt_after(6)
    assert run("sample", *arguments(model, "images.npz"), "--seed", 4).code == 130
    assert (here / "images.npz").read_bytes() == former
    interrupt_after(1000)
    assert run("sample", *arguments(model, "images.npz"), "--seed", 4).code == 0
    assert (here / "images.npz").read_bytes() != former


def test_small_runs_leave_no_trace_of_all_this(model, here, run):
    """One batch, or a grid of any size: nothing is said, nothing lies beside it on the way."""
    seen = set()
    for options in (["--num-images", 60, "--output", "images.npz"], ["--num-images", 200, "--output", "grid.png"]):
        outcome = run("sample", model, *options)
        assert (outcome.code, outcome.err) == (0, "")
        seen |= {p.name for p in here.iterdir()}
    assert seen == {"images.npz", "grid.png"}
    with np.load("images.npz") as arrays:
        assert arrays["arr_0"].shape == (60, 16, 16, 1)
