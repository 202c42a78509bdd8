"""A small model on the disk, and a cache of its own for every test."""

from pathlib import Path

import pytest
import torch

from unistep.formats.model import ModelInfo
from unistep.formats.model_folder.folder import save_model
from unistep.networks.adm import UNet, UNetConfig


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unistep" / "prepared"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consistency model of 8x8 grey images in three classes, with random weights."""
    network = UNet(
        UNetConfig(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(16, 32),
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            layers_per_block=1,
            attention_head_dim=16,
            norm_num_groups=8,
            attn_norm_num_groups=8,
            num_class_embeds=3,
        )
    )
    generator = torch.Generator().manual_seed(0)
    for tensor in network.parameters():
        scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
        tensor.data.normal_(generator=generator).mul_(scale).add_(float(tensor.ndim == 1))
    folder = tmp_path_factory.mktemp("model") / "small"
    save_model(folder, network, ModelInfo(), card="Random weights.\n")
    return folder
