"""Inception: opened by its hash alone; what it is fed, and which of its numbers are which, on a stand-in."""

import hashlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unistep.errors import UserError
from unistep.metrics.features import inception as module
from unistep.metrics.features.inception import INCEPTION, Inception
from unistep.metrics.features.info import Kind
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.metrics.features.resize import clean, legacy_tensorflow

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


class Mixed(nn.Module):
    """The stage whose first branch is the spatial features; its output is something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 9, 1)
        self.tower = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.tower(x), self.conv(x)], 1)


class StandIn(nn.Module):
    """The interface of the published file at a small size: its own resize is there to be left aside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, 4, 61, stride=60),  # 299 -> 4
                mixed_5=nn.Tanh(),
                mixed_6=Mixed(),
                mixed_7=nn.Conv2d(12, 6, 1),
                pool2=nn.AvgPool2d(4),
            )
        )
        self.output = nn.Linear(6, 10)

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        features = self.layers((img.float()[:, :, :299, :299] - 128) / 128).reshape(-1, 6)
        if return_features:
            return features
        logits = F.linear(features, self.output.weight) if no_output_bias else self.output(features)
        return logits.softmax(1)


@pytest.fixture(scope="module")
def stand_in() -> StandIn:
    network = StandIn()
    noise = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=noise) * 0.1
    network.output.bias.data *= 30  # it must show where it is not left out
    return network.eval()


@pytest.fixture
def file(stand_in: StandIn, tmp_path: Path) -> Path:
    torch.jit.script(stand_in).save(tmp_path / "stand-in.pt")
    return tmp_path / "stand-in.pt"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def images(channels: int = 3, size: int = 32, count: int = 3) -> Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, size, size), generator=noise, dtype=torch.uint8)


ALL: tuple[Kind, ...] = ("pool", "spatial", "probabilities")


def test_pool_and_probabilities_are_those_of_the_file_itself(file: Path, stand_in: StandIn):
    network = Inception(file, sha256=sha256(file))
    assert isinstance(network, FeatureNetwork)
    # At 299 pixels nothing is resized, by us or by the file.
    batch = images(size=299)
    found = network(batch, ALL)
    with torch.no_grad():
        torch.testing.assert_close(found["pool"], stand_in(batch, return_features=True))
        torch.testing.assert_close(found["probabilities"], stand_in(batch, no_output_bias=True))
        assert (found["probabilities"] - stand_in(batch)).abs().max() > 0.01


@pytest.mark.parametrize(("resize", "function"), [("legacy-tensorflow", legacy_tensorflow), ("clean", clean)])
def test_images_are_resized_first(resize: str, function, file: Path, stand_in: StandIn):
    network = Inception(file, resize=resize, sha256=sha256(file))
    batch = images()
    with torch.no_grad():
        expected = stand_in.layers((function(batch, 299) - 128) / 128).flatten(1)
    torch.testing.assert_close(network(batch, ["pool"])["pool"], expected)
    assert network.info.resize == resize


def test_spatial_features_are_seven_channels_last_of_the_first_branch(file: Path, stand_in: StandIn):
    found = Inception(file, sha256=sha256(file))(images(size=299), ["spatial"])["spatial"]
    x = (images(size=299).float() - 128) / 128
    with torch.no_grad():
        maps = stand_in.layers.mixed_6.conv(stand_in.layers.mixed_5(stand_in.layers.conv(x)))  # [3, 9, 4, 4]
    assert found.shape == (3, 7 * 16)
    for y, x_, channel in ((0, 0, 6), (2, 1, 0), (3, 3, 6)):
        torch.testing.assert_close(found[:, (y * 4 + x_) * 7 + channel], maps[:, channel, y, x_])


def test_info_says_what_the_numbers_hang_on(file: Path):
    digest = sha256(file)
    legacy, cleaned = (Inception(file, resize=resize, sha256=digest).info for resize in ("legacy-tensorflow", "clean"))
    assert legacy.dims == {"pool": 6, "spatial": 112, "probabilities": 10}
    assert (legacy.name, legacy.digest, legacy.channels) == ("inception", digest, None)
    assert legacy.key != cleaned.key


def test_each_kind_alone_is_the_same_as_in_company(file: Path):
    network = Inception(file, sha256=sha256(file))
    together = network(images(), ALL)
    assert set(together) == set(ALL)
    for kind in ALL:
        alone = network(images(), [kind])
        assert set(alone) == {kind} and torch.equal(alone[kind], together[kind])
        assert alone[kind].dtype == torch.float32 and not alone[kind].requires_grad
        assert alone[kind].shape == (3, network.info.dims[kind])


def test_grey_images_are_repeated(file: Path):
    network = Inception(file, sha256=sha256(file))
    grey = images(channels=1)
    assert torch.equal(network(grey, ["pool"])["pool"], network(grey.repeat(1, 3, 1, 1), ["pool"])["pool"])
    with pytest.raises(UserError, match="1 or 3 channels, and these have 4"):
        network(images(channels=4), ["pool"])


def test_another_file_is_not_opened(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def must_not_open(*_args: object, **_options: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(torch.jit, "load", must_not_open)
    with pytest.raises(UserError, match="holds code, so it is not opened") as error:
        Inception(file)
    assert str(file) in str(error.value) and INCEPTION.url in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="not opened"):
        changed = bytearray(file.read_bytes())
        digest = sha256(file)
        changed[len(changed) // 2] ^= 1
        (tmp_path / "changed.pt").write_bytes(changed)
        Inception(tmp_path / "changed.pt", sha256=digest)
    with pytest.raises(UserError, match="is missing"):
        Inception(tmp_path / "none.pt")
    with pytest.raises(UserError, match="is a folder"):
        Inception(tmp_path)


def test_a_download_is_checked_too(file: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / INCEPTION.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="is damaged"):
        Inception(cache_dir=cache)


def test_unknown_words_are_refused_before_anything_is_opened(file: Path):
    with pytest.raises(UserError, match="`resize` 'nearest' is unknown"):
        Inception("nowhere.pt", resize="nearest")
    network = Inception(file, resize="none", sha256=sha256(file))
    with pytest.raises(UserError, match="32x32 pixels and the feature network takes 299x299"):
        network(images(), ["pool"])


def test_the_published_file():
    assert INCEPTION.url.endswith(INCEPTION.name) and len(INCEPTION.sha256) == 64 and int(INCEPTION.sha256, 16)
    assert module.SIZE == 299
