"""Large datasets are memory-mapped from a cache that is always whole."""

import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unistep.data import DataConfig, open_dataset, read_dataset
from unistep.data.encoded import EncodedReader


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def config(class_folder, cache):
    """Everything is too large for memory."""
    return DataConfig(str(class_folder), memory_limit=0, cache_dir=str(cache))


def mapped(tensor):
    """Whether a tensor's memory is a file's."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            if start <= tensor.data_ptr() < end:
                return line.rstrip().endswith("images.bin")
    return False


def replace(config, **changes):
    return DataConfig(**{**vars(config), **changes})


def test_mapped_images_equal_those_in_memory(config):
    memory = open_dataset(config.source)
    disk = read_dataset(config)
    assert torch.equal(disk.images, memory.images)
    assert torch.equal(disk.labels, memory.labels)
    assert disk.class_names == memory.class_names
    indices, flips = torch.tensor([5, 0, 3]), torch.tensor([True, False, True])
    assert torch.equal(disk.batch(indices, flips)[0], memory.batch(indices, flips)[0])


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux")
def test_only_what_is_too_large_is_mapped(config, cache):
    size = 6 * 3 * 4 * 5
    assert not mapped(read_dataset(replace(config, memory_limit=size)).images)
    assert not cache.exists()
    assert mapped(read_dataset(replace(config, memory_limit=size - 1)).images)
    assert not mapped(read_dataset(replace(config, memory_limit=size)).images)


def test_bundled_and_npz_sources_are_mapped_too(tmp_path, cache, pixels):
    np.savez(tmp_path / "set.npz", arr_0=pixels)
    dataset = read_dataset(DataConfig(str(tmp_path / "set.npz"), memory_limit=0, cache_dir=str(cache)))
    np.testing.assert_array_equal(dataset.images.numpy(), pixels.transpose(0, 3, 1, 2))


def test_the_cache_is_used_again(config, monkeypatch):
    first = read_dataset(config)
    monkeypatch.setattr(EncodedReader, "blocks", lambda *_: pytest.fail("the images were decoded again"))
    monkeypatch.setattr(EncodedReader, "shape", lambda *_: pytest.fail("the images were looked at again"))
    again = read_dataset(config)
    assert torch.equal(first.images, again.images)
    in_memory = read_dataset(replace(config, memory_limit=10**6))
    assert torch.equal(first.images, in_memory.images)


def test_labels_do_not_come_from_the_cache(config, class_folder):
    read_dataset(config)
    assert read_dataset(replace(config, use_labels=False)).labels is None
    (class_folder / "dataset.json").write_text('{"labels": null}')
    assert read_dataset(config).labels is None


def test_other_settings_and_other_files_make_other_entries(config, cache, class_folder, png):
    assert read_dataset(config).images.shape == (6, 3, 4, 5)
    assert read_dataset(replace(config, resolution=4)).images.shape == (6, 3, 4, 4)
    assert read_dataset(replace(config, channels=1)).images.shape == (6, 1, 4, 5)
    assert len(list(cache.iterdir())) == 3
    path = class_folder / "dog" / "5.png"
    path.write_bytes(png(np.full((4, 5, 3), 9, np.uint8)))
    assert (read_dataset(config).images[5] == 9).all()
    assert len(list(cache.iterdir())) == 4
    # The same size and name, a later time.
    path.write_bytes(png(np.full((4, 5, 3), 8, np.uint8)))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert (read_dataset(config).images[5] == 8).all()


def test_skipped_files_are_remembered(config, class_folder, refusal):
    (class_folder / "cat" / "0.png").write_bytes(b"")
    skipping = replace(config, skip_bad=True)
    first, again = read_dataset(skipping), read_dataset(skipping)
    assert torch.equal(first.images, again.images)
    assert len(again) == 5
    assert again.labels.tolist() == [0, 1, 1, 1, 1]
    assert again.skipped == first.skipped != []
    refusal(lambda: read_dataset(config), "cat/0.png", "`skip_bad=True`")


@pytest.mark.parametrize("damage", ["truncated images", "no images", "no index", "bad index", "empty index"])
def test_a_damaged_entry_is_made_again(config, cache, damage):
    expected = open_dataset(config.source).images
    read_dataset(config)
    (entry,) = cache.iterdir()
    if damage == "truncated images":
        os.truncate(entry / "images.bin", 10)
    elif damage == "no images":
        os.unlink(entry / "images.bin")
    elif damage == "no index":
        os.unlink(entry / "index.json")
    else:
        (entry / "index.json").write_text("{" if damage == "bad index" else "{}")
    assert torch.equal(read_dataset(config).images, expected)
    assert [path.name for path in cache.iterdir()] == [entry.name]


def test_an_interrupted_run_leaves_no_entry(config, cache, monkeypatch):
    def interrupted(self, shape, resolution, skipped):
        yield np.zeros((1, *shape), np.uint8)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EncodedReader, "blocks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_dataset(config)
    assert list(cache.iterdir()) == []
    assert torch.equal(read_dataset(config).images, open_dataset(config.source).images)


def test_leftovers_of_killed_runs_are_removed_once_old(config, cache):
    read_dataset(config)
    (entry,) = cache.iterdir()
    os.unlink(entry / "index.json")
    old, young = cache / f"{entry.name}.tmp-old", cache / f"{entry.name}.tmp-young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "images.bin").write_bytes(b"half")
    past = time.time() - 2 * 24 * 3600
    for path in (old / "images.bin", old):
        os.utime(path, (past, past))
    read_dataset(config)
    assert sorted(path.name for path in cache.iterdir()) == [entry.name, young.name]


def test_the_faster_of_two_processes_wins(config, cache, monkeypatch):
    blocks = EncodedReader.blocks

    def overtaken(self, *arguments):
        yield from blocks(self, *arguments)
        monkeypatch.setattr(EncodedReader, "blocks", blocks)
        read_dataset(config)

    monkeypatch.setattr(EncodedReader, "blocks", overtaken)
    assert torch.equal(read_dataset(config).images, open_dataset(config.source).images)
    assert len(list(cache.iterdir())) == 1


def test_default_place(config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    read_dataset(replace(config, cache_dir=None))
    (entry,) = (tmp_path / "xdg" / "unistep" / "data").iterdir()
    assert json.loads((entry / "index.json").read_text()) == {"shape": [6, 3, 4, 5], "skipped": []}
    assert (entry / "images.bin").stat().st_size == 6 * 3 * 4 * 5


def test_a_full_disk_is_refused(config, cache, monkeypatch, refusal):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=359))
    refusal(lambda: read_dataset(config), cache, "360", "359", "`cache_dir`", "`memory_limit`")
    assert list(cache.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(config, tmp_path, refusal):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "cache"
    refusal(lambda: read_dataset(replace(config, cache_dir=str(place))), place, "`cache_dir`")


def test_too_little_memory_is_refused(config, monkeypatch, refusal):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr("unistep.data.store.np.empty", no_memory)
    refusal(lambda: read_dataset(replace(config, memory_limit=10**6)), config.source, "360", "`memory_limit`")
