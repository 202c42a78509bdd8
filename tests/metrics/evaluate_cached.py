"""Evaluates images whose features are kept already, in a process of its own.

Prints seconds of computing, and peak memory in GB.
"""

import re
import sys
import time
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from unistep.metrics.evaluation import evaluate_images
from unistep.metrics.features.extract import extract
from unistep.metrics.features.info import FeatureInfo, Kind
from unistep.metrics.reference import Reference
from unistep.metrics.sources import DataSource
from unistep.metrics.statistics import read_statistics, write_statistics
from unistep.metrics.table import METRICS


class Wide:
    """2,048 features of 8x8 images, whose variances fall off over four decades; none are computed where `forbidden`."""

    def __init__(self, forbidden: bool) -> None:
        random = torch.Generator().manual_seed(0)
        self.weights = torch.randn(64, 2048, generator=random) / 80
        self.rows = torch.randn(8192, 2048, generator=random) * torch.logspace(0, -2, 2048)
        self.info = FeatureInfo("wide", "Wide", "wide", "none", {"pool": 2048})
        self.forbidden = forbidden

    def __call__(self, images: Tensor, kinds: Collection[Kind]) -> dict[Kind, Tensor]:
        if self.forbidden:
            raise AssertionError("these features were kept")
        pixels = images.flatten(1).long()
        # Any of 8,192 rows: of fewer than 2,048 the features would be singular.
        first, second = ((pixels[:, at] * 256 + pixels[:, at + 1]) % 8192 for at in (0, 2))
        return {"pool": pixels.float() / 255 @ self.weights + self.rows[first] + self.rows[second]}


def source(count: int, seed: int) -> DataSource:
    random = torch.Generator().manual_seed(seed)
    return DataSource(torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=random), f"{count} images")


count, folder, filling = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "fill"
samples = source(count, 1)
if filling:
    extract(samples, Wide(False), ["pool"], folder)
    few = source(5000, 2)
    report = evaluate_images(few, Reference("reference", few), Wide(False), [METRICS["fd"]], feature_cache=folder)
    write_statistics(folder / "reference.npz", report.reference_moments, Wide(False).info, {})
else:
    reference = Reference("reference.npz", statistics=read_statistics(folder / "reference.npz"))
    started = time.process_time()
    report = evaluate_images(samples, reference, Wide(True), [METRICS["fd"]], feature_cache=folder)
    seconds = time.process_time() - started
    # Not getrusage: its peak begins at that of the process which started this one.
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    print(seconds, int(peak[1]) / 1e6)
