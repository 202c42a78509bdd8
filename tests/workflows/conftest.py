"""Models of random weights, and data, for the tests of what is built from a config."""

import importlib.util
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unistep.data import DataConfig
from unistep.formats.model import LoadedModel
from unistep.formats.model_folder.folder import load_model
from unistep.networks.song import SongUNetConfig


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
