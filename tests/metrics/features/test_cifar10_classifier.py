"""The CIFAR-10 classifier, and its features."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from unistep.data import ImageDataset
from unistep.errors import UserError
from unistep.metrics.features import cifar10_classifier
from unistep.metrics.features.cifar10_classifier import CIFAR10Classifier, load_cifar10_classifier
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.metrics.features.table import open_features
from unistep.workflows.evaluate import evaluate


@pytest.fixture(scope="module")
def classifier() -> CIFAR10Classifier:
    torch.manual_seed(0)
    return CIFAR10Classifier().eval()


def test_an_image_and_its_mirror_image_are_alike(classifier):
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    for found, expected in zip(
        classifier.features_and_logits(images.flip(-1)), classifier.features_and_logits(images), strict=True
    ):
        torch.testing.assert_close(found, expected)
    x = images.float() / 127.5 - 1
    with torch.no_grad():
        mean = (classifier(x)[1] + classifier(x.flip(-1))[1]) / 2
    torch.testing.assert_close(classifier.features_and_logits(images, batch_size=2)[1], mean)
    assert torch.equal(classifier.predict(images), mean.argmax(dim=1))


def test_weights_are_small_enough_to_be_bundled(classifier):
    assert sum(parameter.numel() for parameter in classifier.parameters()) <= 2_500_000


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 64), (3, 32, 28)])
def test_other_images_are_refused(classifier, shape):
    with pytest.raises(UserError, match=r"CIFAR-10 classifier takes images \[N, 3, 32, 32\]"):
        classifier.features_and_logits(torch.zeros(2, *shape, dtype=torch.uint8))


@pytest.fixture(scope="module")
def weights(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "cifar10.safetensors"
    state = {k: v.contiguous() for k, v in classifier.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, path)
    return path


def test_as_a_feature_network(classifier, weights):
    network = open_features("cifar10", path=weights)
    assert isinstance(network, FeatureNetwork)
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    found = network(images, ["pool", "probabilities"])
    features, logits = classifier.features_and_logits(images)
    torch.testing.assert_close(found["pool"], features)
    torch.testing.assert_close(found["probabilities"], logits.softmax(dim=1))
    assert network.info.dims == {kind: values.shape[1] for kind, values in found.items()}
    assert network.info.classifies and network.info.digest == hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="cifar10 takes colour images of 32x32 pixels, these have 1 channels of 28x28"):
        network(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), ["pool"])


def test_other_files_are_refused(classifier, weights, tmp_path):
    state = load_file(weights)
    for changed, message in (
        ({name: value for name, value in state.items() if name != "head.bias"}, "lacks tensor head.bias"),
        (state | {"head.bias": torch.zeros(100)}, r"tensor head.bias is \[100\], not \[10\]"),
    ):
        save_file(changed, tmp_path / "other.safetensors")
        with pytest.raises(UserError, match=message):
            open_features("cifar10", path=tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="missing"):
        open_features("cifar10", path=tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="`resize` is not for cifar10"):
        open_features("cifar10", path=weights, resize="clean")


def test_it_agrees_by_its_own_classes(classifier, weights, tmp_path):
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    predicted = classifier.predict(images)
    options = {"features": "cifar10", "features_path": weights, "metrics": ["agreement"], "feature_cache": tmp_path}
    report = evaluate(ImageDataset(images, predicted), **options)
    assert report["agreement"].value == 1
    report = evaluate(ImageDataset(images, (predicted + 1) % 10), **options)
    assert report["agreement"].value == 0


def test_the_weights_of_the_package(tmp_path, monkeypatch):
    model, digest = load_cifar10_classifier()
    assert digest == cifar10_classifier.WEIGHTS_SHA256 == open_features("cifar10").info.digest
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    # No picture of CIFAR-10 is in the package: a blue one is sky or sea, and a green one is not.
    blue = torch.tensor([110, 160, 220], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    of_blue, of_green = model.features_and_logits(torch.stack([blue, blue[[0, 2, 1]]]))[1].softmax(dim=1)
    assert of_blue[0] + of_blue[8] > of_green[0] + of_green[8]
    monkeypatch.setattr(cifar10_classifier, "WEIGHTS_SHA256", "0")
    with pytest.raises(UserError, match="is not that of the published CIFAR-10 classifier"):
        load_cifar10_classifier()
