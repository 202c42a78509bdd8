"""The network of the CIFAR-10 classifier."""

import pytest
import torch

from unistep.errors import UserError
from unistep.metrics.features.cifar10_classifier import CIFAR10Classifier


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
