"""The published loop in words of our own computes what this package computes; the benchmark of both runs."""

import json
import math
import subprocess
import sys
from pathlib import Path

import ect_loop
import pytest
import torch

from unistep.core.curriculum import ect_r
from unistep.core.parameterization import ConsistencyScaling, Preconditioned
from unistep.data import ImageDataset
from unistep.networks.song import SongUNet, SongUNetConfig
from unistep.objectives.consistency import ConsistencyObjective
from unistep.objectives.methods import METHODS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def network(dropout: float = 0.0) -> Preconditioned:
    torch.manual_seed(0)
    config = SongUNetConfig(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        model_channels=8,
        channel_mult=(1,),
        num_blocks=1,
        attn_resolutions=(),
        dropout=dropout,
    )
    net = SongUNet(config)
    for p in net.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.1)  # or what is dropped would not show
    return Preconditioned(net, ConsistencyScaling(0.0, noise_embedding="edm"))


def images(number: int = 8) -> ImageDataset:
    pixels = torch.randint(256, (number, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageDataset(pixels)


@pytest.mark.parametrize("stage", [0, 7])
def test_the_published_loss_is_ours(stage):
    model = network().train()
    loop = ect_loop.PublishedLoop(model, images(), 8, stage, torch.device("cpu"), workers=0)
    generator = torch.Generator().manual_seed(1)
    x, noise = (torch.randn(8, 3, 8, 8, generator=generator) for _ in range(2))
    t = torch.tensor([0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 20.0, 60.0])
    config = METHODS["ect"].config()
    objective = ConsistencyObjective(config, config.stages)
    r = ect_r(t, stage, config.q, config.k, config.b)
    ours = objective.loss_at(model, x, None, t, r, noise)
    torch.testing.assert_close(loop.loss_at(x, None, t, noise), ours, rtol=1e-4, atol=1e-4)


def test_both_passes_drop_the_same_units():
    loop = ect_loop.PublishedLoop(network(dropout=0.5), images(), 8, 60, torch.device("cpu"), workers=0, k=0.0)
    x, noise = torch.zeros(8, 3, 8, 8), torch.randn(8, 3, 8, 8)
    t = torch.full((8,), 10.0)
    loop.lower = lambda t: t - 1e-3  # so near that only other units would make a difference
    near = loop.loss_at(x, None, t, noise) * 1e-3
    assert near.max() < 1e-2
    loop._set_random_state = lambda state: None
    assert (loop.loss_at(x, None, t, noise) * 1e-3).min() > near.max()


def test_the_published_loop_trains():
    loop = ect_loop.PublishedLoop(network(dropout=0.1), images(), 4, 0, torch.device("cpu"), rounds=2, workers=0)
    before = [p.detach().clone() for p in loop.model.parameters()]
    for _ in range(2):
        loop.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))
    assert loop.moments[0] == 8 and math.isfinite(loop.moments[1])


def test_the_benchmark_runs(tmp_path):
    path = tmp_path / "training.json"
    command = [sys.executable, "training.py", "--tiny", "--batch", "2", "--turns", "1", "--steps", "1"]
    command += ["--json", str(path), "--runs", "published:fp32", "eager:fp32"]
    subprocess.run(command, cwd=BENCHMARKS, check=True, capture_output=True, timeout=120)
    runs = json.loads(path.read_text())["runs"]
    assert [run["run"] for run in runs] == ["published:fp32", "eager:fp32"]
    for run in runs:
        assert run["images_per_second"] > 0 and run["needed_gflop"] > 0 and run["of_matrix"] > 0 and not run["failed"]
        assert run["to_published"] > 0
