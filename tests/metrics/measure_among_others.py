"""One of the processes that `test_evaluate_processes.py` starts: measures, and the first writes what came out."""

import json
import os
from pathlib import Path

import torch

from unistep.metrics.evaluation import evaluate_images
from unistep.metrics.features.mnist import MNIST
from unistep.metrics.reference import Reference
from unistep.metrics.sources import DataSource
from unistep.metrics.table import METRICS
from unistep.runtime.processes import join_processes

rank: int
count: int
port: int
pixels: str
cache: str
said: str

os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "RANK": str(rank)}
torch.set_num_threads(1)
stored = torch.load(pixels, weights_only=True)
report = evaluate_images(
    DataSource(stored["samples"], "samples"),
    Reference("reference", DataSource(stored["reference"], "reference")),
    MNIST(),
    [METRICS[name] for name in ("fd", "kd", "is", "precision", "recall", "density", "coverage")],
    feature_cache=Path(cache),
    processes=join_processes(),
    save_kinds=["pool"],
)
Path(said).write_text(json.dumps([report.to_dict()["metrics"], sorted(report.pictures), [*report.reference_moments]]))
