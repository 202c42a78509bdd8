"""One of the processes that `test_evaluate_processes.py` starts: measures, and the first writes what came out."""

import json
import os
from pathlib import Path

import torch

from unistep.metrics.evaluate import evaluate
from unistep.metrics.features.mnist import MNIST
from unistep.metrics.reference import Reference
from unistep.metrics.sources import DataSource
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
report = evaluate(
    DataSource(stored["samples"], "samples"),
    Reference("reference", DataSource(stored["reference"], "reference")),
    MNIST(),
    ["fd", "kd", "is", "pr", "dc"],
    feature_cache=Path(cache),
    processes=join_processes(),
    save_kinds=["pool"],
)
if report is not None:
    Path(said).write_text(json.dumps([rank, report.as_json()["metrics"]]))
