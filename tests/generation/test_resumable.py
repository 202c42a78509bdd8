"""What the folder of an unfinished run promises, whatever it is on its way to: an .npz or a folder of PNGs."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from unistep.data import open_dataset
from unistep.errors import UserError
from unistep.generation.png_folder import PngFolder
from unistep.generation.resumable import runs
from unistep.generation.shards import Shards

N, SHAPE = 40, (3, 4, 6)
SETTINGS = {"num_images": N, "seed": 3, "sigmas": (80.0, 0.8), "weights": "0123456789" * 5}
LABELS = torch.arange(N) % 4


@pytest.fixture(params=[Shards, PngFolder])
def kind(request) -> type:
    return request.param


@pytest.fixture
def images(generator):
    return torch.randint(0, 256, (N, *SHAPE), dtype=torch.uint8, generator=generator)


@pytest.fixture
def start(kind, tmp_path):
    """start(): the images of a run on their way to one place, as a new process would have them."""
    output = tmp_path / ("images.npz" if kind is Shards else "images")
    begun = []

    def build(num_images: int = N):
        for former in begun:  # its process is dead
            former.release()
        begun.append(kind(output, num_images, SHAPE))
        return begun[-1]

    return build


def write(unfinished, images, *parts: range) -> None:
    for part in parts:
        unfinished.write(part.start, images[part.start : part.stop])
    unfinished.flush()


def complete(unfinished, images, settings=SETTINGS, labels=LABELS) -> Path:
    unfinished.claim(settings)
    for part in unfinished.missing():
        write(unfinished, images, part)
    return unfinished.finish(labels)


def assert_holds(path: Path, images, labels=LABELS) -> None:
    dataset = open_dataset(str(path))
    assert torch.equal(dataset.images, images)
    assert dataset.labels is None if labels is None else torch.equal(dataset.labels, labels)


def stray_files(path: Path) -> list[str]:
    """What lies in or beside an output that does not belong to it."""
    inside = (
        [p.name for p in path.iterdir() if p.suffix != ".png" and p.name != "dataset.json"] if path.is_dir() else []
    )
    return inside + [p.name for p in path.parent.iterdir() if p != path]


@pytest.mark.parametrize("labels", [None, LABELS])
def test_the_output_is_training_data(start, images, labels):
    path = complete(start(), images, labels=labels)
    assert_holds(path, images, labels)
    assert stray_files(path) == []


def test_any_order_and_any_batches(start, images):
    unfinished = start()
    assert unfinished.claim(SETTINGS) == 0
    assert unfinished.missing() == [range(N)]
    write(unfinished, images, range(30, 33), range(33, 34), range(0, 7))
    assert unfinished.missing() == [range(7, 30), range(34, 40)]
    assert unfinished.count() == 11
    write(unfinished, images, range(7, 30), range(34, 40))
    assert unfinished.missing() == []
    assert_holds(unfinished.finish(LABELS), images)


def test_the_same_settings_go_on(start, images):
    first = start()
    first.claim(SETTINGS)
    write(first, images, range(5, 20))
    second = start()
    assert second.claim(SETTINGS) == 15
    assert second.missing() == [range(5), range(20, N)]
    write(second, images, *second.missing())
    assert_holds(second.finish(LABELS), images)


def test_what_is_there_is_not_written_again(start, images):
    first = start()
    first.claim(SETTINGS)
    write(first, images, range(5, 20))
    before = {p.name: p.stat().st_ino for p in first.folder.iterdir()}
    second = start()
    second.claim(SETTINGS)
    assert {p.name: p.stat().st_ino for p in second.folder.iterdir()} == before


def test_other_settings_are_refused(start, images):
    first = start()
    first.claim(SETTINGS)
    write(first, images, range(5, 20))
    other = SETTINGS | {"seed": 4, "sigmas": (80.0,), "weights": "9876543210" * 5}
    with pytest.raises(UserError) as refused:
        start().claim(other)
    assert str(refused.value) == (
        f"15 of 40 images for {first.output} are there from a run that differs in seed (3, now 4), "
        "sigmas ([80.0, 0.8], now [80.0]), weights; repeat its command to go on, or give `restart=True` to delete them"
    )
    assert start().claim(SETTINGS) == 15, "the refusal has kept them"


def test_restart_begins_anew(start, images):
    first = start()
    first.claim(SETTINGS)
    write(first, images.flip(0), range(5, 20))
    second = start()
    assert second.claim(SETTINGS, restart=True) == 0
    assert second.missing() == [range(N)]
    assert_holds(complete(start(), images), images)


def test_settings_of_a_run_without_images_are_nothing_to_keep(start, images):
    start().claim(SETTINGS | {"seed": 4})
    assert_holds(complete(start(), images), images)


def test_settings_that_cannot_be_read_are_others(start, images):
    first = start()
    first.claim(SETTINGS)
    write(first, images, range(5, 20))
    for content in ("{", "[]", "[" * 100_000):
        (first.folder / "settings.json").write_text(content)
        with pytest.raises(UserError, match="restart=True"):
            start().claim(SETTINGS)


@pytest.mark.parametrize("damage", ["truncated", "emptied"])
def test_a_damaged_file_is_remade(start, images, damage):
    first = start()
    first.claim(SETTINGS)
    write(first, images, range(5, 20), range(30, 31))
    victim = max(p for p in first.folder.iterdir() if p.suffix in (".part", ".png"))
    victim.write_bytes({"truncated": victim.read_bytes()[:-1], "emptied": b""}[damage])
    second = start()
    assert second.claim(SETTINGS) == 15
    assert second.missing() == [range(5), range(20, N)]
    write(second, images, *second.missing())
    assert_holds(second.finish(LABELS), images)


def test_half_written_files_are_cleared(start, images):
    first = start()
    first.claim(SETTINGS)
    write(first, images, range(5, 20))
    (first.folder / ".000000000-000000005.part.tmp").write_bytes(b"half")
    (first.folder / "merged.tmp").write_bytes(b"half")
    second = start()
    assert second.claim(SETTINGS) == 15
    assert not list(second.folder.glob("*.tmp")) and not list(second.folder.glob(".*.tmp"))
    path = complete(start(), images)
    assert stray_files(path) == []


def test_a_former_output_stays_until_the_new_one_is_complete(start, images):
    path = complete(start(), images)
    again = start(20)
    again.claim(SETTINGS | {"num_images": 20, "seed": 4})
    write(again, images.flip(0), range(19))
    assert_holds(path, images)
    write(again, images.flip(0), range(19, 20))
    assert_holds(again.finish(LABELS[:20]), images.flip(0)[:20], LABELS[:20])
    assert stray_files(path) == []


def test_two_runs_do_not_write_to_one_output(kind, start):
    first = start()
    first.claim(SETTINGS)
    with pytest.raises(UserError, match="is being written by another run; wait for it, or choose another `output`"):
        kind(first.output, N, SHAPE).claim(SETTINGS)
    first.discard()
    kind(first.output, N, SHAPE).claim(SETTINGS)


def test_others_files_stay(start, images):
    first = start()
    first.claim(SETTINGS)
    (first.folder / "notes.txt").write_text("mine")
    first.discard()
    assert (first.folder / "notes.txt").read_text() == "mine"


def test_discard_leaves_nothing(start, images):
    first = start()
    first.claim(SETTINGS)
    write(first, images, range(5, 20))
    first.discard()
    assert not first.folder.exists()
    assert not first.output.exists()


def test_a_place_that_cannot_be_written(kind, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write .*file.*; choose another `output`") as refused:
        kind(tmp_path / "file" / "images.npz", N, SHAPE).claim(SETTINGS)
    assert "\n" not in str(refused.value)


def test_a_read_only_folder(kind, read_only):
    with pytest.raises(UserError, match=f"cannot write {read_only}/images.npz: Permission denied; choose"):
        kind(read_only / "images.npz", N, SHAPE).claim(SETTINGS)
    assert os.listdir(read_only) == []


def test_a_full_disk(start, images, monkeypatch):
    unfinished = start()
    unfinished.claim(SETTINGS)

    def full(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match="No space left on device; free the disk and repeat the command"):
            write(unfinished, images, range(N))
    assert_holds(complete(start(), images), images)


class Killed(BaseException):
    """What a kill is to the process: nothing of it runs any more."""


@pytest.fixture
def until(monkeypatch):
    """until(n, action): does it, but dies before the n-th change of the file system; whether it came to its end."""

    def run(moment: int, action) -> bool:
        changes = iter(range(moment))

        def dying(change):
            def maybe(*args, **kwargs):
                if next(changes, None) is None:
                    raise Killed
                return change(*args, **kwargs)

            return maybe

        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "unlink", "rmdir", "mkdir"):
                patch.setattr(os, name, dying(getattr(os, name)))
            patch.setattr(Path, "touch", dying(Path.touch))
            try:
                action()
            except Killed:
                return False
        return True

    return run


@pytest.mark.parametrize("former_output", [False, True])
def test_killed_at_any_instant(start, images, until, former_output):
    """The run is broken off before each change that it makes to the file system, and done again each time."""
    images, labels = images[:4], LABELS[:4]
    old = images.flip(0)

    def attempt() -> None:
        unfinished = start(4)
        unfinished.claim(SETTINGS)
        write(unfinished, images, *(range(i, i + 1) for part in unfinished.missing() for i in part))
        unfinished.finish(labels)

    finished, moment = False, 0
    while not finished:
        if former_output:
            complete(start(4), old, SETTINGS | {"seed": 0}, labels)
        finished = until(moment, attempt)
        output = start(4).output
        if output.is_file() or (output / "dataset.json").exists():  # what looks complete is
            found = open_dataset(str(output)).images
            assert torch.equal(found, images) or (former_output and torch.equal(found, old))
        attempt()
        assert_holds(output, images, labels)
        assert stray_files(output) == []
        shutil.rmtree(output) if output.is_dir() else output.unlink()
        moment += 1
    assert moment > 10


def test_what_is_half_removed_is_no_run(start, images, until):
    """Killed while it cleans up; nobody is asked to save the rest."""
    finished, moment = False, 1
    while not finished:
        unfinished = start(4)
        unfinished.claim(SETTINGS, restart=True)
        write(unfinished, images[:4], *(range(i, i + 1) for i in range(4)))
        finished = until(moment, unfinished.discard)
        start(4).claim(SETTINGS | {"seed": 5})
        moment += 1
    assert moment > 3


def test_runs():
    assert list(runs([])) == []
    assert list(runs([4])) == [range(4, 5)]
    assert list(runs([0, 1, 2, 5, 7, 8])) == [range(3), range(5, 6), range(7, 9)]
