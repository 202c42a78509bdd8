"""DINOv2 as a feature network: what images become before it, and what its numbers hang on."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.features.dinov2 import DINOv2
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.metrics.features.resize import clean
from unistep.networks.dinov2 import VisionTransformer, VisionTransformerConfig

CONFIG = VisionTransformerConfig(width=64, depth=1, heads=1, grid=3)


@pytest.fixture(scope="module")
def network() -> VisionTransformer:
    network = VisionTransformer(CONFIG).eval().requires_grad_(False)
    noise = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.copy_(torch.randn(p.shape, generator=noise) * 0.1)
    return network


@pytest.fixture
def file(network: VisionTransformer, tmp_path: Path) -> Path:
    torch.save(network.state_dict(), tmp_path / "dinov2.pth")
    return tmp_path / "dinov2.pth"


def images(channels: int = 3, size: int = 32) -> Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, channels, size, size), generator=noise, dtype=torch.uint8)


def test_images_enter_as_normalised_colours_at_224_pixels(file: Path, network: VisionTransformer):
    features = DINOv2(file)
    assert isinstance(features, FeatureNetwork)
    resized = clean(images(), 224) / 255
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        resized[:, channel] = (resized[:, channel] - mean) / std
    found = features(images(), ["pool"])["pool"]
    torch.testing.assert_close(found, network(resized))
    assert found.dtype == torch.float32 and found.shape == (3, features.info.dims["pool"])


def test_info_says_what_the_numbers_hang_on(file: Path, network: VisionTransformer, tmp_path: Path):
    info = DINOv2(file).info
    assert (info.name, info.resize, info.dims, info.channels) == ("dinov2", "clean", {"pool": 64}, None)
    assert info.label == "DINOv2-64"  # FD-DINOv2 is of 1024 features
    half = tmp_path / "half.pth"
    torch.save({name: value.half() for name, value in network.state_dict().items()}, half)
    other = tmp_path / "other.pth"
    torch.save({name: value + 0 for name, value in network.state_dict().items()}, other)
    assert DINOv2(other).info.key == info.key
    assert DINOv2(half).info.key != info.key
    assert DINOv2(file, resize="legacy-tensorflow").info.key != info.key


def test_grey_images_are_repeated(file: Path):
    features, grey = DINOv2(file), images(channels=1)
    assert torch.equal(features(grey, ["pool"])["pool"], features(grey.repeat(1, 3, 1, 1), ["pool"])["pool"])


def test_refusals(file: Path):
    with pytest.raises(UserError, match="`resize` 'nearest' is unknown"):
        DINOv2("nowhere.pth", resize="nearest")
    features = DINOv2(file, resize="none")
    with pytest.raises(UserError, match="features dinov2 are pool; they have no spatial"):
        features(images(), ["pool", "spatial"])
    with pytest.raises(UserError, match="1 or 3 channels, and these have 2"):
        features(images(channels=2), ["pool"])
    with pytest.raises(UserError, match="32x32 pixels and the feature network takes 224x224"):
        features(images(), ["pool"])
