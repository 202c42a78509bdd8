"""Evaluation beside its peers: images a second of the feature networks, and the Frechet distance of 50,000 features.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --count 10000 --turns 1 --json evaluation.json

Networks are those that need no download, given random images of their own size in batches of 64, as `unistep evaluate`
gives them; the best of the turns counts. The distance is computed by this package, by torchmetrics, and by the formula
of clean-fid and of most scripts (numpy.cov and scipy.linalg.sqrtm), from one file of features against one reference, as
in `frechet.py`: its value and the least seconds of each. Ratios are other / unistep: above 1 unistep is faster.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import frechet

SIZES: dict[str, tuple[int, int, int]] = {
    "mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "effnet-lite0": (3, 64, 64),
    "pixels": (3, 32, 32),
}
"""Channels, height and width of the images that each network is timed with."""

PEERS = {"torchmetrics": "torchmetrics", "scipy": "clean-fid's formula"}


def rate(name: str, count: int, turns: int) -> float:
    """Images a second of a feature network.

    Args:
        name: name of the network.
        count: number of images.
        turns: how often it is measured.
    """
    import torch

    from unistep.metrics.features.extract import features_of
    from unistep.metrics.features.table import open_features

    network = open_features(name)
    images = torch.randint(256, (count, *SIZES[name]), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features_of(images[:64], network, ["pool"])
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        features_of(images, network, ["pool"])
        seconds.append(time.perf_counter() - began)
    return count / min(seconds)


def rates(images: int, turns: int) -> dict[str, float]:
    """Images a second of each network, which are printed as they come.

    Args:
        images: number of images.
        turns: how often each is measured.
    """
    found = {}
    for name, (channels, height, width) in SIZES.items():
        found[name] = rate(name, images, turns)
        print(f"{name:24}{found[name]:10,.0f} images/s of {channels} x {height} x {width}", flush=True)
    return found


def distances(count: int, turns: int, folder: Path) -> dict[str, dict[str, float]]:
    """Value, seconds and ratio of the Frechet distance by side, which are printed.

    Args:
        count: number of features.
        turns: how often each side is measured.
        folder: folder for the features.
    """
    reference, features = folder / "reference.npz", folder / "features.npy"
    frechet.write_reference(reference, folder, 20_000)
    frechet.write_features(features, count, seed=2)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in ("unistep", *PEERS)}
    for _ in range(turns):
        for side, done in runs.items():
            done.append(frechet.run(side, features, reference))
    least = {side: min(run["seconds"] for run in done) for side, done in runs.items()}
    found = {}
    print(f"\n{count:,} x {frechet.DIM:,} features\n\n{'':24}{'s':>8}{'ratio':>8}{'distance':>18}{'peak MiB':>10}")
    for side, done in runs.items():
        found[side] = {
            "seconds": least[side],
            "ratio": least[side] / least["unistep"],
            "value": done[0]["value"],
            "peak_mib": done[0]["peak_mib"],
        }
        row = f"{PEERS.get(side, side):24}{least[side]:8.2f}{found[side]['ratio']:8.2f}"
        print(f"{row}{done[0]['value']:18.9f}{done[0]['peak_mib']:10.0f}", flush=True)
    return found


def measure(images: int = 1024, count: int = 50_000, turns: int = 3, folder: Path | None = None) -> dict[str, Any]:
    """All figures of the evaluation, which are printed as they come.

    Args:
        images: number of images that the networks are timed with.
        count: number of features of the distance.
        turns: how often each is measured.
        folder: place of the features; None is the system's own for temporary files.
    """
    found: dict[str, Any] = {"images/s": rates(images, turns)}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        found["frechet"] = distances(count, turns, Path(temporary))
    return found | {"count": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="images that the networks are timed with")
    parser.add_argument("--count", type=int, default=50_000, help="features of the Frechet distance")
    parser.add_argument("--turns", type=int, default=3, help="how often each is measured")
    parser.add_argument("--folder", type=Path, help="where the features are written; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    options = parser.parse_args()
    found = measure(options.images, options.count, options.turns, options.folder)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
