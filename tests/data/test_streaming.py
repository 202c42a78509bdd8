"""Images of shards that other processes decode when they are needed."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from unistep.data import read_dataset
from unistep.data.config import DataConfig
from unistep.data.decode_pool import DecodePool
from unistep.data.streaming import StreamedImages
from unistep.training.batches import Batches

COUNT = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shards of 30 images of 6x6 pixels with classes, and the cache of their index."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("shards")
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 6, 3), dtype=np.uint8)
    for shard in range(3):
        with tarfile.open(folder / f"set-{shard:03}.tar", "w") as archive:
            for i in range(30 * shard, 30 * shard + 30):
                held = io.BytesIO()
                Image.fromarray(pixels[i]).save(held, "PNG")
                for name, content in ((f"{i:05}.png", held.getvalue()), (f"{i:05}.cls", str(i % 7).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return DataConfig(str(folder), stream=True, workers=2, cache_dir=str(folder / "cache"))


@pytest.fixture(scope="module")
def streamed(config):
    dataset = read_dataset(config)
    assert isinstance(dataset.images, StreamedImages)
    yield dataset
    dataset.images.close()


@pytest.fixture(scope="module")
def held(config):
    return read_dataset(replace(config, stream=False))


def test_a_streamed_dataset_is_the_one_in_memory(streamed, held):
    assert streamed.images.shape == held.images.shape and streamed.images.numel() == held.images.numel()
    assert streamed.labels.equal(held.labels) and repr(streamed) == repr(held)
    assert streamed.images[:].equal(held.images) and streamed.images[-1].equal(held.images[-1])
    assert streamed.images[5:50:7].equal(held.images[5:50:7])
    assert torch.cat(list(streamed.images.split(40))).equal(held.images)
    indices, flips = torch.tensor([3, 89, 3, 0]), torch.tensor([True, False, False, True])
    for one, other in zip(streamed.batch(indices, flips), held.batch(indices, flips), strict=True):
        assert one.equal(other)
    with pytest.raises(IndexError):
        streamed.batch(torch.tensor([COUNT]))
    assert streamed._repr_png_() == held._repr_png_()


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("parts", [1, 2])
def test_batches_are_those_of_memory_on_any_number_of_processes(streamed, held, processes, parts):
    """Through the ends of epochs, after a jump as of a resumed run, and in parts of a step."""
    device, size = torch.device("cpu"), 36 // (processes * parts)
    ranks = [Batches(streamed, device, seed=1, flip=True, use_labels=True) for _ in range(processes)]
    memory = Batches(held, device, seed=1, flip=True, use_labels=True)
    for step in [0, 1, 2, 3, 7, 8, 2]:
        found = [
            rank.at(step, 36, (number * parts + part) * size, size)
            for number, rank in enumerate(ranks)
            for part in range(parts)
        ]
        whole = memory.at(step, 36)
        assert torch.cat([one.images for one in found]).equal(whole.images)
        assert torch.cat([one.labels for one in found]).equal(whole.labels)
        assert torch.cat([one.words for one in found], dim=1).equal(whole.words)


def test_the_next_batches_are_asked_for(streamed):
    batches = Batches(streamed, torch.device("cpu"), seed=1, flip=False, use_labels=True)
    for step in range(4):
        for start in (0, 4):
            batches.at(step, 8, start, 4)
    assert [part for part, _, _ in batches._asked][:4] == [(4, 8, 0, 4), (4, 8, 4, 4), (5, 8, 0, 4), (5, 8, 4, 4)]


def test_what_is_larger_than_the_limit_is_streamed(config):
    assert isinstance(read_dataset(replace(config, stream=None)).images, torch.Tensor)
    assert isinstance(read_dataset(replace(config, stream=None, memory_limit=1000)).images, StreamedImages)


def test_other_sources_are_not_streamed(class_folder, refusal):
    refusal(lambda: read_dataset(DataConfig(str(class_folder), stream=True)), "`stream`", "shards", "data pack")


@pytest.fixture
def broken(folder, tmp_path):
    """The shards with one image that is none, after the first ones."""
    for path in folder.glob("*.tar"):
        content = bytearray(path.read_bytes())
        if path.name == "set-001.tar":
            place = content.index(b"\x89PNG", 20_000)
            content[place : place + 40] = b"x" * 40
        (tmp_path / path.name).write_bytes(content)
    return DataConfig(
        str(tmp_path), resolution=6, channels=3, stream=True, workers=1, cache_dir=str(tmp_path / "cache")
    )


def test_a_broken_image_is_named_when_it_is_met(broken, refusal):
    images = read_dataset(broken).images
    line = refusal(lambda: images[:], "set-001.tar/", ".png", "`skip_bad=True`")
    assert "cannot be read as an image" in line
    images.close()


def test_broken_images_are_left_out(broken):
    streamed = read_dataset(replace(broken, skip_bad=True))
    held = read_dataset(replace(broken, skip_bad=True, stream=False))
    assert len(streamed) == len(held) == COUNT - 1 and streamed.skipped == held.skipped
    assert streamed.images[:].equal(held.images) and streamed.labels.equal(held.labels)
    streamed.images.close()


@pytest.mark.parametrize("workers", [0, 257])
def test_numbers_of_workers(workers, refusal):
    refusal(lambda: DataConfig("mnist", workers=workers), "`workers`")


def pool_of(streamed, workers, seconds=300.0):
    return DecodePool(streamed.images._job, workers, seconds)


def test_a_killed_worker_is_one_line(streamed, refusal):
    pool = pool_of(streamed, 1)
    os.kill(pool._workers[0].process.pid, signal.SIGKILL)
    asked = pool.ask(np.arange(10), None)
    refusal(lambda: pool.take(asked), "killed by signal 9", "`workers`")
    pool.close()


def test_a_hanging_worker_is_one_line_with_shard_and_member(streamed, refusal):
    pool = pool_of(streamed, 1, 1.0)
    pool.take(pool.ask(np.arange(2), None))
    os.kill(pool._workers[0].process.pid, signal.SIGSTOP)
    pool._state[0] = 31  # as if it were at this image
    asked = pool.ask(np.arange(10), None)
    refusal(lambda: pool.take(asked), "set-001.tar/00031.png", "nothing has come from it")
    pool.close()


TRAINING = """
import os, sys, threading, time
import torch
from unistep.data import read_dataset
from unistep.data.config import DataConfig
from unistep.runtime.stalls import Watch
from unistep.training.batches import Batches

folder = sys.argv[1]
dataset = read_dataset(DataConfig(folder, stream=True, workers=2, cache_dir=folder + "/cache"))
os.remove(folder + "/set-001.tar")
os.mkfifo(folder + "/set-001.tar")
batches = Batches(dataset, torch.device("cpu"), seed=1, flip=False, use_labels=True)

def tell():
    while "set-001.tar/" not in batches.waiting_for():
        time.sleep(0.02)
    print("it waits", flush=True)

threading.Thread(target=tell, daemon=True).start()
with Watch(2, 1, 4, batches) as watch:
    for step in range(100):
        watch.at(step)
        batches.at(step, 8)
"""


def test_a_file_that_never_answers_is_named_and_its_worker_ends(folder, tmp_path):
    """The worker holds a pipe that this process reads to its end: if it were left, this would last for ever."""
    for shard in folder.glob("*.tar"):
        shutil.copy(shard, tmp_path)
    command = [sys.executable, "-c", TRAINING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and line.startswith("unistep: error: process 1 of 4 hangs for 2 s, in step 1, at ")
    assert f", waiting for {tmp_path}/set-001.tar/000" in line and line.endswith(".png")


def test_a_worker_that_hangs_ends_with_the_one_that_started_it(folder, tmp_path):
    """Killed, it can end nothing itself."""
    for shard in folder.glob("*.tar"):
        shutil.copy(shard, tmp_path)
    command = [sys.executable, "-c", TRAINING.replace("Watch(2", "Watch(None"), str(tmp_path)]
    training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert training.stdout is not None and training.stdout.readline() == b"it waits\n"
    training.kill()
    assert training.communicate(timeout=60) == (b"", b"")


def test_workers_outlive_the_signals_of_a_training(streamed):
    pool = pool_of(streamed, 1)
    pool.take(pool.ask(np.arange(2), None))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(pool._workers[0].process.pid, number)
    assert len(pool.take(pool.ask(np.arange(5), None))) == 5
    pool.close()


def test_workers_end_with_their_pool(streamed):
    pool = pool_of(streamed, 2)
    pids = [worker.process.pid for worker in pool._workers]
    del pool
    for _ in range(100):
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return
        time.sleep(0.05)
    raise AssertionError("a worker is left")


def test_memory_does_not_grow_with_the_batches(streamed):
    pool = pool_of(streamed, 2)
    for _ in range(15):
        asked = [pool.ask(np.arange(40), None) for _ in range(3)]
        pool.drop(asked[1])
        pool.take(asked[0])
        pool.take(asked[2])
    assert len(pool._places) <= 12
    pool.close()
