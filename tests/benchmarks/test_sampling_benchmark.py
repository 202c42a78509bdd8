"""The benchmarks of sampling and of the start: what they count, and when they fail."""

from pathlib import Path

import bench
import evaluation
import floor
import startup
import torch

from unistep.networks import kernels
from unistep.networks.adm import UNet
from unistep.networks.adm_config import UNetConfig


def figures(ratio: float, processor: str = "a processor") -> dict:
    return {"processor": processor, "models": {"imagenet64": {"psnr": 50.0, "batch 1": {"ratios": {"best": ratio}}}}}


def test_a_ratio_that_falls_by_more_than_a_tenth(capsys):
    assert bench.fallen(figures(1.2), figures(1.09)) == []
    (line,) = bench.fallen(figures(1.2), figures(1.07))
    assert line == "models, imagenet64, batch 1, ratios, best fell from 1.20 to 1.07"
    assert bench.fallen(figures(1.2, "another"), figures(0.5)) == []
    assert "nothing is compared" in capsys.readouterr().out


def test_the_floor_counts_every_product_of_a_network():
    config = UNetConfig(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        attention_head_dim=16,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )
    network = UNet(config).eval().cast_blocks(torch.bfloat16)
    before = kernels.is_swift
    counts = floor.operations(lambda: network(torch.randn(1, 3, 8, 8), torch.ones(1)))
    assert kernels.is_swift is before
    kinds = {kind: sum(n for key, n in counts.items() if key[0] == kind) for kind in ("conv", "linear", "attention")}
    modules = list(network.modules())
    assert kinds["conv"] == sum(isinstance(module, torch.nn.Conv2d) for module in modules)
    assert kinds["linear"] == sum(isinstance(module, torch.nn.Linear) for module in modules)
    assert kinds["attention"] == 4
    first = floor.Floor(counts)
    seconds = [first.turn()["seconds"] for _ in range(2)]
    assert 0 < seconds[1] <= seconds[0]


def test_figures_of_the_start():
    seconds = {"import torch": [1.0, 1.2, 3.0], "first image": [1.3, 1.4, 3.1]}
    found = startup.figures(seconds)
    assert found["first image"]["seconds"] == 1.3 and abs(found["first image"]["beyond"] - 0.2) < 1e-9
    assert "first image" in startup.table(found)


WHOLE: dict = {
    "processor": "a processor",
    "versions": {"torch": "2.13", "openvino": "2026.4"},
    "start": {"import torch": {"seconds": 1.0, "beyond": 0.0}},
    "models": {
        "imagenet64": {
            "psnr": 50.0,
            "batch 1": {
                "seconds": {
                    "diffusers default": 3.0,
                    "diffusers bf16": 1.5,
                    "unistep default": 2.0,
                    "unistep auto": 1.0,
                },
                "floor": {"conv": 0.8, "seconds": 0.9},
                "ratios": {"best": 1.5},
            },
        }
    },
    "runtimes": {"imagenet64, batch 1": {"unistep, eager bf16": {"seconds": 1.0, "ratio": 1.5, "peak_mib": 1000.0}}},
    "evaluation": {
        "images/s": {"mnist": 5000.0},
        "frechet": {"scipy": {"seconds": 13.3, "ratio": 3.5, "value": 5.5, "peak_mib": 1300.0}},
        "count": 50_000,
    },
}


def test_the_page_of_the_figures():
    text = bench.tables(WHOLE)
    assert text.startswith("a processor; torch 2.13, openvino 2026.4.\n")
    for row in (
        "| ImageNet-64, batch 1: unistep, eager bf16 | 1.000 | 1.50 | 1,000 |",
        "| ImageNet-64, batch 1 | 3.000 | 1.500 | 1.000 | 1.50 (3.00 to the default) | 1.11 x 0.900 |",
        "| import torch | 1.00 | +0.00 |",
        "| mnist | 5,000 |",
        "| clean-fid's formula | 13.3 | 3.50 | 5.500000 |",
    ):
        assert row in text


def test_a_part_replaces_its_own_figures():
    part = {"processor": "a processor", "models": {"imagenet64": {"batch 8": {"ratios": {"best": 1.3}}}}}
    found = bench.merged(WHOLE, part)
    assert set(found["models"]["imagenet64"]) == {"psnr", "batch 1", "batch 8"} and found["start"] == WHOLE["start"]
    assert bench.merged(WHOLE, part | {"processor": "another"}) == part | {"processor": "another"}
    assert dict(bench.ratios(found))["runtimes, imagenet64, batch 1, unistep, eager bf16, ratio"] == 1.5


def test_images_a_second_of_a_network(monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "SIZES", {"mnist": (1, 28, 28)})
    assert evaluation.rates(images=64, turns=1)["mnist"] > 0
    assert "images/s of 1 x 28 x 28" in capsys.readouterr().out
    runs = iter([{"seconds": s, "value": 5.5, "peak_mib": 1.0} for s in (2.0, 4.0, 6.0)])
    for name in ("write_reference", "write_features"):
        monkeypatch.setattr(evaluation.frechet, name, lambda *given, **named: None)
    monkeypatch.setattr(evaluation.frechet, "run", lambda *given: next(runs))
    found = evaluation.distances(10, 1, Path("."))
    assert {side: row["ratio"] for side, row in found.items()} == {"unistep": 1, "torchmetrics": 2, "scipy": 3}
