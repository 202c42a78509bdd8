"""The benchmarks of sampling and of the start: what they count, and when they fail."""

import floor
import sampling
import startup
import torch

from unistep.networks import kernels
from unistep.networks.adm import UNet
from unistep.networks.adm_config import UNetConfig


def figures(ratio: float, processor: str = "a processor") -> dict:
    return {"processor": processor, "models": {"imagenet64": {"psnr": 50.0, "batch 1": {"ratios": {"best": ratio}}}}}


def test_a_ratio_that_falls_by_more_than_a_tenth(capsys):
    assert sampling.fallen(figures(1.2), figures(1.09)) == []
    (line,) = sampling.fallen(figures(1.2), figures(1.07))
    assert line == "imagenet64, batch 1: ratio best fell from 1.20 to 1.07"
    assert sampling.fallen(figures(1.2, "another"), figures(0.5)) == []
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
