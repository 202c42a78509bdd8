"""Packing of many small images into shards, a kill in the middle, and the streaming of the shards.

    python benchmarks/packing.py
    python benchmarks/packing.py --count 1000000 --folder /data/scratch --json packing.json
    python benchmarks/packing.py --folder /data/scratch --stream

The source is a .zip of 32x32 colour PNGs, the images of a dataset moved and mirrored anew in each round, every
hundredth of them broken. It is packed with one kill by SIGKILL, the images that were rejected are compared with the
broken ones, and a consumer then takes batches of the shards in their order of training and does nothing for 10 ms with
each.

`--stream` measures the last alone, on shards of an earlier call. The stall is the time for which the consumer is
blocked because a batch is not decoded yet, as a share of the whole time; the call is the time that it takes to get
batches, with their order, seeds and copies; "in memory" is that of images that are held in memory.
"""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

import unistep
from unistep.data import ImageDataset, read_dataset
from unistep.data.config import DataConfig
from unistep.data.decode_pool import DecodePool
from unistep.training.batches import Batches

BROKEN_EVERY = 100
CONSUMER_SECONDS = 0.010


def source(path: Path, count: int, data: str) -> list[str]:
    """Writes the .zip, unless it is there, and returns the names of the broken images."""
    names = [f"class{i % 10}/{i:07}.png" for i in range(count)]
    broken = [name for i, name in enumerate(names) if i % BROKEN_EVERY == BROKEN_EVERY - 1]
    if path.exists():
        return broken
    images = unistep.open_dataset(data, resolution=32, channels=3).images.numpy()
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path.with_suffix(".tmp"), "w", zipfile.ZIP_STORED) as archive:
        for i, name in enumerate(names):
            turn, row = divmod(i, len(images))
            pixels = np.roll(images[row], (turn % 5 - 2, turn // 5 - 2), (1, 2))[:, :, :: -1 if turn % 2 else 1]
            held = io.BytesIO()
            Image.fromarray(pixels.transpose(1, 2, 0)).save(held, "PNG", compress_level=1)
            content = held.getvalue()
            if i % BROKEN_EVERY == BROKEN_EVERY - 1:
                content = content[: random.integers(20, len(content) // 2)]
            archive.writestr(name, content)
    path.with_suffix(".tmp").rename(path)
    return broken


def memory(process: psutil.Process) -> float:
    """Resident memory of a process and those that it started, in MB; what they share counts once."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_full_info().uss
        except psutil.Error:
            continue
    return total / 1e6


def packed(archive: Path, output: Path, kill_at: float) -> dict[str, Any]:
    """Packs in a process of its own, killed once when that share of the shards is there."""
    code = "import sys, unistep; print(unistep.pack_dataset(*sys.argv[1:], format='shards', resolution=32).former)"
    command = [sys.executable, "-c", code, str(archive), str(output)]
    count = -(-len(zipfile.ZipFile(archive).namelist()) // 10_000)
    result: dict[str, Any] = {"seconds": 0.0, "memory_mb": []}
    for turn in range(2):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        seen, looked = psutil.Process(process.pid), started
        while process.poll() is None:
            time.sleep(0.2)
            if time.perf_counter() - looked > 5:
                looked = time.perf_counter()
                result["memory_mb"].append((turn, round(looked - started), round(memory(seen))))
            there = len(list(output.glob("shard-*.tar")))
            if turn == 0 and there >= kill_at * count:
                process.send_signal(signal.SIGKILL)
        result["seconds"] += time.perf_counter() - started
        said = process.communicate()[0]
        if turn == 0:
            result["shards_at_kill"] = len(list(output.glob("shard-*.tar")))
        else:
            result["shards_kept"] = int(said)
    return result


def streamed(output: Path, cache: Path, batch: int, seconds: float, workers: int) -> dict[str, Any]:
    """Takes batches for some time, once as fast as they come and once by the consumer."""
    config = DataConfig(str(output), stream=True, workers=workers, cache_dir=str(cache))
    started = time.perf_counter()
    dataset = read_dataset(config)
    opened = time.perf_counter() - started
    streamed_batches = Batches(dataset, torch.device("cpu"), seed=0, flip=True, use_labels=True)
    result: dict[str, Any] = {"images": len(dataset), "open_seconds": opened, "batch": batch, "workers": workers}
    pixels = torch.zeros((100_000, *dataset.images.shape[1:]), dtype=torch.uint8)
    held_images = ImageDataset(pixels, torch.zeros(len(pixels), dtype=torch.int64))
    memory_batches = Batches(held_images, torch.device("cpu"), seed=0, flip=True, use_labels=True)
    process, step, blocked = psutil.Process(), 0, [0.0]
    look = DecodePool._look

    def timed(self: DecodePool) -> None:
        before = time.perf_counter()
        look(self)
        blocked[0] += time.perf_counter() - before

    DecodePool._look = timed
    for name, pause, batches in (
        ("in memory", CONSUMER_SECONDS, memory_batches),
        ("fast", 0.0, streamed_batches),
        ("consumer", CONSUMER_SECONDS, streamed_batches),
    ):
        for _ in range(20):
            batches.at(step, batch)
            step += 1
        first, started, waited, held, blocked[0] = step, time.perf_counter(), 0.0, [], 0.0
        while time.perf_counter() - started < seconds:
            before = time.perf_counter()
            batches.at(step, batch)
            waited += time.perf_counter() - before
            step += 1
            if pause:
                time.sleep(pause)
            if step % 500 == 0:
                held.append(round(memory(process)))
        took = time.perf_counter() - started
        result[name] = {"images_per_second": (step - first) * batch / took, "memory_mb": held}
        result[name] |= {"stall": blocked[0] / took, "call": waited / took}
    dataset.images.close()  # type: ignore[union-attr]
    return result


def main() -> None:
    """Runs the benchmark and prints its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000, help="number of images of the source")
    parser.add_argument("--data", default="cifar10-test", help="dataset that the images are made of")
    parser.add_argument("--folder", type=Path, default=Path("packing"), help="folder of source and shards")
    parser.add_argument("--batch", type=int, default=64, help="images of a batch")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode")
    parser.add_argument("--seconds", type=float, default=10, help="time of each measurement of streaming")
    parser.add_argument("--stream", action="store_true", help="measure streaming alone")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    archive, output, cache = (given.folder / name for name in ("source.zip", "shards", "cache"))
    found: dict[str, Any] = {"count": given.count}
    if not given.stream:
        broken = source(archive, given.count, given.data)
        found["packing"] = packed(archive, output, 0.4)
        rejected = json.loads((output / "rejected.json").read_text())
        names = [one["name"].partition(".zip/")[2] for one in rejected]
        found["packing"] |= {"images_per_second": given.count / found["packing"]["seconds"], "rejected": len(names)}
        found["packing"]["rejected_are_the_broken_ones"] = names == broken
        found["packing"]["bytes"] = sum(path.stat().st_size for path in output.glob("*.tar"))
    found["streaming"] = streamed(output, cache, given.batch, given.seconds, given.workers)
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
