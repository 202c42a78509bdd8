"""Models of random weights, and data, for the tests of what is built from a config."""

import importlib.util
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from unistep.data import DataConfig
from unistep.formats.model import LoadedModel, ModelInfo
from unistep.formats.model_folder.folder import load_model, save_model
from unistep.formats.openai.layout import diffusers_to_openai
from unistep.networks.adm import UNetConfig
from unistep.networks.patched import PatchedUNetConfig
from unistep.networks.song import SongUNetConfig
from unistep.workflows.parts import build_network


@pytest.fixture(scope="session")
def network() -> PatchedUNetConfig:
    return PatchedUNetConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attn_norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=3,
        patch_size=2,
    )


@pytest.fixture(scope="session")
def song() -> SongUNetConfig:
    return SongUNetConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        num_class_embeds=3,
        model_channels=16,
        channel_mult=(1, 1),
        num_blocks=1,
        attn_resolutions=(4,),
        dropout=0.1,
    )


@pytest.fixture(scope="session")
def saved(network, tmp_path_factory) -> Callable[..., Path]:
    """saved(kind, null_label, base=None, info={}, **fields of the network): a model folder; no weight is zero."""

    def save(
        kind: str = "diffusion", null_label: int | None = None, base: Any = None, info: Any = None, **fields: Any
    ) -> Path:
        path = tmp_path_factory.mktemp("models") / "model"
        model, noise = build_network(replace(base or network, **fields), seed=7), torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=noise), alpha=0.1)
        save_model(path, model, ModelInfo(kind, null_label=null_label, **(info or {})), card="Random weights.\n")
        return path

    return save


@pytest.fixture(scope="session")
def teacher(saved) -> LoadedModel:
    """Of three classes and the null class."""
    return load_model(saved(null_label=3, num_class_embeds=4))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Callable[..., DataConfig]:
    """data(channels=1, size=8, classes=3): six random images, labelled where there are classes."""

    def make(channels: int = 1, size: int = 8, classes: int = 3) -> DataConfig:
        path = tmp_path_factory.mktemp("data") / "images.npz"
        images = np.random.default_rng(0).integers(0, 256, (6, size, size, channels), dtype=np.uint8)
        labels = [] if classes == 0 else [np.array([classes - 1, *(i % classes for i in range(5))])]
        np.savez(path, images, *labels)
        return DataConfig(str(path))

    return make


# ------------------------------------------------------------------------------------------------ teachers of others


@pytest.fixture
def openai_pt(tmp_path) -> Callable[..., Path]:
    """openai_pt(name): an unconditional network for 32 x 32 colour images, as OpenAI writes one."""

    def make(name: str = "edm_cat256_tiny.pt") -> Path:
        config = UNetConfig(
            sample_size=32,
            down_block_types=("AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D"),
            block_out_channels=(64, 64),
            layers_per_block=1,
            attention_head_dim=64,
            downsample_type="conv",
            upsample_type="conv",
            num_class_embeds=None,
        )
        weights = build_network(config, 3).state_dict()
        noise = torch.Generator().manual_seed(3)
        weights = {name: v + 0.03 * torch.randn(v.shape, generator=noise) for name, v in weights.items()}
        torch.save(diffusers_to_openai(weights, config), tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def edm_makers() -> types.ModuleType:
    """The makers of files in the tests of their reader."""
    spec = importlib.util.spec_from_file_location("edm_files", Path(__file__).parents[1] / "formats" / "test_edm.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def edm_pkl(edm_makers, tmp_path, monkeypatch) -> Callable[..., Path]:
    """edm_pkl(preconditioning="EDMPrecond"): a network of five classes for 16 x 16 colour images, as NVIDIA's."""
    makers = edm_makers

    def make(preconditioning: str = "EDMPrecond", path: Path = tmp_path / "edm.pkl") -> Path:
        attributes = {"EDMPrecond": makers.EDM | {"sigma_data": 0.5}, "VPPrecond": makers.VP}[preconditioning]
        kwargs = makers.SONG | {"model_channels": 16, "attn_resolutions": []}
        whole = makers.whole(preconditioning, attributes, "SongUNet", kwargs, makers.song_weights(kwargs))
        return makers.write(path, {"ema": whole}, monkeypatch)

    return make


@pytest.fixture
def no_accelerator_left() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
