"""Frechet distance from cached features beside scipy's matrix square root and torchmetrics: time, memory, value.

    python benchmarks/frechet.py                     50,000 and 500,000 vectors of 2,048 numbers (4 GB of disk)
    python benchmarks/frechet.py --counts 50000      50,000 alone

Every side reads the same float32 file and the same moments of a reference, in a process of its own; imports are not
counted. The sides take turns, so that a busy moment of the machine meets all of them. "unistep" gives the distance, as
the others do; "with errors" its standard error and the extrapolated distance too, as `unistep evaluate` does. scipy
stands for the usual script: all features in memory, numpy.cov, scipy.linalg.sqrtm; it is left out where that needs more
than half of the machine's memory. Ratios are medians of other / unistep: above 1 unistep is faster, or smaller.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

DIM = 2048
BATCH = 4096
SIDES = ("unistep", "with errors", "torchmetrics", "scipy")


def write_features(path: Path, count: int, seed: int) -> None:
    """Correlated features whose variances fall off over four decades, as those of networks do."""
    random, mixing = np.random.default_rng(seed), np.random.default_rng(0)
    scale = np.logspace(0, -2, DIM, dtype=np.float32)
    common = mixing.standard_normal((64, DIM), dtype=np.float32) * 0.1
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, DIM))
    for start in range(0, count, BATCH):
        rows = min(BATCH, count - start)
        part = random.standard_normal((rows, DIM), dtype=np.float32) * scale
        file[start : start + rows] = part + random.standard_normal((rows, 64), dtype=np.float32) @ common + 0.02 * seed
    file.flush()


def batches(path: str) -> Iterator[tuple[int, Any]]:
    """Each batch is mapped anew: pages of a mapping that stays would count as memory of the process."""
    count = len(np.load(path, mmap_mode="r"))
    for start in range(0, count, BATCH):
        yield start, np.array(np.load(path, mmap_mode="r")[start : start + BATCH])


def measure_unistep(path: str, mean: Any, covariance: Any, count: int) -> dict[str, float]:
    import torch

    from unistep.metrics.frechet import frechet_distance
    from unistep.metrics.moments import StreamingMoments

    started = clock()
    stream = StreamingMoments(DIM)
    for _, batch in batches(path):
        stream.update(torch.from_numpy(batch))
    found = stream.result()
    value = frechet_distance(found.mean, found.covariance, torch.from_numpy(mean), torch.from_numpy(covariance))
    return {"value": value, **passed(started)}


def measure_with_errors(path: str, mean: Any, covariance: Any, count: int) -> dict[str, float]:
    import torch

    from unistep.metrics.frechet import frechet_estimate
    from unistep.metrics.moments import GroupedMoments, Moments

    started = clock()
    samples = GroupedMoments(DIM)
    for start, batch in batches(path):
        samples.update(torch.from_numpy(batch), start)
    found = frechet_estimate(samples, Moments(torch.from_numpy(mean), torch.from_numpy(covariance), count))
    error, extrapolated = found.distance.standard_error, found.extrapolated.value
    return {"value": found.distance.value, "error": error, "extrapolated": extrapolated, **passed(started)}


def measure_torchmetrics(path: str, mean: Any, covariance: Any, count: int) -> dict[str, float]:
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Identity(torch.nn.Module):
        num_features = DIM

        def forward(self, features: Any) -> Any:
            return features

    started = clock()
    metric = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    mu, sigma = torch.from_numpy(mean), torch.from_numpy(covariance)
    metric.real_features_sum = count * mu
    metric.real_features_cov_sum = (count - 1) * sigma + count * torch.outer(mu, mu)
    metric.real_features_num_samples = torch.tensor(count)
    for _, batch in batches(path):
        metric.update(torch.from_numpy(batch), real=False)
    return {"value": metric.compute().item(), **passed(started)}


def measure_scipy(path: str, mean: Any, covariance: Any, count: int) -> dict[str, float]:
    from scipy import linalg

    started = clock()
    features = np.load(path)
    mu, sigma = features.mean(axis=0, dtype=np.float64), np.cov(features, rowvar=False)
    root = linalg.sqrtm(sigma @ covariance)
    value = np.sum((mu - mean) ** 2) + np.trace(sigma) + np.trace(covariance) - 2 * np.trace(root).real
    return {"value": float(value), **passed(started)}


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def passed(since: tuple[float, float]) -> dict[str, float]:
    return {name: now - then for name, now, then in zip(("seconds", "cpu_seconds"), clock(), since, strict=True)}


def peak_mib() -> float:
    """Of this process. On Linux not by getrusage, which hands on the peak of the process that started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def worker(side: str, path: str, reference: str) -> None:
    """Measures once; prints JSON."""
    with np.load(reference) as arrays:
        moments = arrays["mean"], arrays["covariance"], int(arrays["count"])
    measure = {
        "unistep": measure_unistep,
        "with errors": measure_with_errors,
        "torchmetrics": measure_torchmetrics,
        "scipy": measure_scipy,
    }[side]
    result = measure(path, *moments)
    print(json.dumps(result | {"peak_mib": peak_mib()}))


def write_reference(path: Path, folder: Path, count: int) -> None:
    features = folder / "reference.npy"
    write_features(features, count, seed=1)
    loaded = np.load(features)
    np.savez(
        path, mean=loaded.mean(axis=0, dtype=np.float64), covariance=np.cov(loaded, rowvar=False), count=len(loaded)
    )
    features.unlink()


def run(side: str, features: Path, reference: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", side, str(features), str(reference)]
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}
    )
    return json.loads(output.stdout)


def compare(features: Path, reference: Path, count: int, turns: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # float32, and float64 twice: as numpy.cov takes them, and centred.
    sides = [side for side in SIDES if side != "scipy" or 20 * count * DIM < memory / 2]
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(turns):
        for side in sides:
            results[side].append(run(side, features, reference))
    print(f"\n{count:,} x {DIM:,} features, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print(f"{'':14}{'seconds':>10}{'ratio':>8}{'CPU s':>10}{'peak MiB':>10}{'ratio':>8}{'distance':>16}")
    ours = results["unistep"]
    for side in sides:
        row = f"{side:14}"
        for key, ratio in (("seconds", True), ("cpu_seconds", False), ("peak_mib", True)):
            values = [result[key] for result in results[side]]
            row += f"{statistics.median(values):10.1f}"
            if ratio:
                row += f"{statistics.median(v / o[key] for v, o in zip(values, ours, strict=True)):8.2f}"
        print(row + f"{results[side][0]['value']:16.9f}", flush=True)
    errors = results["with errors"][0]
    print(f"  standard error {errors['error']:.2g}, extrapolated to endless samples {errors['extrapolated']:.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=[50_000, 500_000])
    parser.add_argument("--turns", type=int, default=1, help="how often each side is measured")
    parser.add_argument("--folder", type=Path, help="where the features are written; default: a temporary folder")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        reference = folder / "reference.npz"
        write_reference(reference, folder, 20_000)
        for count in options.counts:
            features = folder / "features.npy"
            write_features(features, count, seed=2)
            compare(features, reference, count, options.turns)
            features.unlink()


if __name__ == "__main__":
    main()
