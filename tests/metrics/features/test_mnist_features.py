"""The bundled classifier behind the interface of a feature network."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unistep.data import open_dataset
from unistep.errors import UserError
from unistep.metrics.features.mnist import MNIST
from unistep.metrics.features.mnist_classifier import load_mnist_classifier
from unistep.metrics.features.protocol import FeatureNetwork


@pytest.fixture(scope="module")
def network() -> MNIST:
    return MNIST()


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return open_dataset("mnist-test").images[:20]


def test_features_are_the_classifiers(network: MNIST, digits: Tensor):
    assert isinstance(network, FeatureNetwork)
    found = network(digits, ["pool", "probabilities"])
    classifier = load_mnist_classifier()
    torch.testing.assert_close(found["pool"], classifier.features(digits))
    torch.testing.assert_close(found["probabilities"].sum(dim=1), torch.ones(20))
    torch.testing.assert_close(found["probabilities"].log(), classifier.logits(digits).log_softmax(dim=1))
    assert network.info.dims == {kind: features.shape[1] for kind, features in found.items()}
    assert network(digits, ["probabilities"]).keys() == {"probabilities"}


def test_of_padded_digits_the_middle_is_seen(network: MNIST, digits: Tensor):
    expected = network(digits, ["pool"])["pool"]
    for paint in (0, 255):
        padded = F.pad(digits, (2, 2, 2, 2), value=paint)
        assert torch.equal(network(padded, ["pool"])["pool"], expected)
    shifted = F.pad(digits, (3, 1, 2, 2))
    assert not torch.allclose(network(shifted, ["pool"])["pool"], expected)


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 28, 32), (1, 27, 27), (1, 30, 30), (1, 64, 64), (3, 32, 32)])
def test_other_images_are_refused(network: MNIST, shape: tuple[int, ...]):
    with pytest.raises(UserError, match=rf"{shape[0]} channels of {shape[1]}x{shape[2]}"):
        network(torch.zeros(2, *shape, dtype=torch.uint8), ["pool"])


def test_spatial_features_are_refused(network: MNIST, digits: Tensor):
    with pytest.raises(UserError, match="mnist .*no spatial"):
        network(digits, ["pool", "spatial"])
