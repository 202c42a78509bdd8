import os
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.errors import UserError
from unistep.generation import shards
from unistep.generation.shards import SHARD_IMAGES, GridShards, Shards, shards_folder
from unistep.images.grid import save_grid

SHAPE = (1, 2, 3)
N = 1000


@pytest.fixture
def images(generator):
    return torch.randint(0, 256, (N, *SHAPE), dtype=torch.uint8, generator=generator)


@pytest.fixture
def unfinished(tmp_path):
    made = Shards(tmp_path / "images.npz", N, SHAPE)
    made.claim({"seed": 0})
    return made


def names(unfinished: Shards) -> list[str]:
    return sorted(p.name for p in unfinished.folder.glob("*.part"))


def test_the_folder_is_hidden_and_beside_the_output(unfinished, tmp_path):
    assert unfinished.folder == shards_folder(unfinished.output) == tmp_path / ".images.npz.parts"
    assert unfinished.folder.is_dir()


def test_files_are_few(unfinished, images):
    """One image at a time, and yet a file holds hundreds."""
    for i in range(600):
        unfinished.write(i, images[i : i + 1])
    assert names(unfinished) == ["000000000-000000256.part", "000000256-000000512.part"]
    unfinished.flush()
    assert names(unfinished)[2:] == ["000000512-000000600.part"]
    unfinished.flush()
    assert len(names(unfinished)) == 3


def test_large_batches_are_not_split(unfinished, images):
    unfinished.write(0, images[: 2 * SHARD_IMAGES])
    assert names(unfinished) == ["000000000-000000512.part"]


def test_a_slow_model_does_not_wait_for_hundreds(unfinished, images, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SECONDS", 0.0)
    unfinished.write(0, images[:1])
    assert names(unfinished) == ["000000000-000000001.part"]


def test_a_gap_ends_a_file(unfinished, images):
    unfinished.write(0, images[:3])
    unfinished.write(5, images[5:7])
    unfinished.flush()
    assert unfinished.stored() == [range(3), range(5, 7)]


def test_what_waits_is_written_after_an_interruption(unfinished, images, monkeypatch):
    """A signal in the middle of writing a file; who flushes in the end gets it whole."""

    def interrupted(source, target):
        raise KeyboardInterrupt

    unfinished.write(0, images[:3])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        unfinished.flush()
    unfinished.flush()
    assert unfinished.stored() == [range(3)]


@pytest.mark.parametrize("byte", [0, 10, -1])
def test_a_changed_byte_is_found(unfinished, images, byte):
    unfinished.write(0, images[:300])
    unfinished.write(300, images[300:600])
    (path, other) = sorted(unfinished.folder.glob("*.part"))
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    unfinished.release()
    again = Shards(unfinished.output, N, SHAPE)
    assert again.claim({"seed": 0}) == 300
    assert again.missing() == [range(300), range(600, N)]
    assert other.exists() and not path.exists()


@pytest.mark.parametrize("wrong", [range(900, 1100), range(200, 400), range(300, 300)])
def test_files_that_contradict_the_rest_are_removed(unfinished, images, wrong):
    """Whole files, but of images beyond the last, of an image that another one holds, of none."""
    unfinished.write(0, images[:300])
    pixels = bytes(len(wrong) * 6)
    name = f"{wrong.start:09d}-{wrong.stop:09d}.part"
    (unfinished.folder / name).write_bytes(zlib.crc32(pixels).to_bytes(4, "big") + pixels)
    unfinished.release()
    again = Shards(unfinished.output, N, SHAPE)
    assert again.claim({"seed": 0}) == 300
    assert names(again) == ["000000000-000000300.part"]


def test_damage_after_the_beginning_stops_the_merge(unfinished, images, tmp_path):
    unfinished.output.write_bytes(b"the former output")
    for start in range(0, N, 250):
        unfinished.write(start, images[start : start + 250])
        unfinished.flush()
    victim = unfinished.folder / "000000500-000000750.part"
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{victim} was damaged on the disk and is removed; repeat the command"):
        unfinished.finish(None)
    assert unfinished.output.read_bytes() == b"the former output"
    assert unfinished.missing() == [range(500, 750)]
    unfinished.write(500, images[500:750])
    unfinished.flush()
    with np.load(unfinished.finish(None)) as arrays:
        assert arrays.files == ["arr_0"]
        assert np.array_equal(arrays["arr_0"], images.permute(0, 2, 3, 1).numpy())
    assert [p.name for p in tmp_path.iterdir()] == ["images.npz"]


def test_how_the_images_came_does_not_change_a_byte(tmp_path, images):
    labels = torch.arange(N) % 7

    def merged(name: str, sizes: list[int]) -> bytes:
        unfinished = Shards(tmp_path / name, N, SHAPE)
        unfinished.claim({})
        starts = np.cumsum([0, *sizes]).tolist()
        for start, size in reversed(list(zip(starts, sizes, strict=False))):
            unfinished.write(start, images[start : start + size])
        unfinished.flush()
        return unfinished.finish(labels).read_bytes()

    assert merged("a.npz", [N]) == merged("b.npz", [1, 99, 400, 500])


def test_merging_needs_the_memory_of_one_file(tmp_path):
    shape, total = (3, 16, 16), 20 * SHARD_IMAGES
    unfinished = Shards(tmp_path / "images.npz", total, shape)
    unfinished.claim({})
    for start in range(0, total, SHARD_IMAGES):
        unfinished.write(start, torch.full((SHARD_IMAGES, *shape), start % 251, dtype=torch.uint8))
    one_file = SHARD_IMAGES * 3 * 16 * 16
    tracemalloc.start()
    unfinished.finish(None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * one_file


def test_grid_of_several_processes(tmp_path, images):
    unfinished = GridShards(tmp_path / "grid.png", 12, SHAPE, columns=4)
    unfinished.claim({})
    unfinished.write(6, images[6:12])
    unfinished.write(0, images[:6])
    unfinished.flush()
    unfinished.finish(None)
    expected = save_grid(images[:12], tmp_path / "expected.png", 4)
    with Image.open(tmp_path / "grid.png") as made, Image.open(expected) as wanted:
        assert np.array_equal(np.asarray(made), np.asarray(wanted))
    assert not Path(unfinished.folder).exists()
