import math

import pytest
import torch
from torch import Tensor

from unistep.data import open_dataset
from unistep.errors import UserError
from unistep.metrics import mnist
from unistep.metrics.features import mnist_classifier
from unistep.metrics.features.mnist_classifier import MNISTClassifier, load_mnist_classifier
from unistep.metrics.mnist import evaluate_digits, frechet_floor
from unistep.metrics.moments import Moments, moments


@pytest.fixture(scope="module")
def classifier() -> MNISTClassifier:
    return load_mnist_classifier()


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """The 10,000 test images and their labels."""
    dataset = open_dataset("mnist-test")
    return dataset.images, dataset.labels


@pytest.fixture(scope="module")
def scored(classifier: MNISTClassifier, digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return classifier.features_and_logits(digits[0])


@pytest.fixture(scope="module")
def reference(classifier: MNISTClassifier) -> Moments:
    """Moments of 4,000 training images: enough to compare with, and quick."""
    return moments(classifier.features(open_dataset("mnist").images[:4000]))


def test_accuracy_on_the_test_images(digits: tuple[Tensor, Tensor], scored: tuple[Tensor, Tensor]):
    correct = scored[1].argmax(dim=1) == digits[1]
    assert len(correct) == 10_000
    assert correct.double().mean() >= 0.993
    for digit in range(10):
        assert correct[digits[1] == digit].double().mean() >= 0.985


def test_loaded_model_is_frozen_and_in_eval_mode(classifier: MNISTClassifier):
    assert not any(module.training for module in classifier.modules())
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_every_way_in_gives_the_same(
    classifier: MNISTClassifier, digits: tuple[Tensor, Tensor], scored: tuple[Tensor, Tensor]
):
    images = digits[0][:70]
    features, logits = classifier(images.float() / 127.5 - 1)
    assert features.shape == (70, mnist_classifier.FEATURE_DIM) and logits.shape == (70, 10)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(features, scored[0][:70], **close)
    torch.testing.assert_close(logits, scored[1][:70], **close)
    # 70 is no multiple of 32: the last batch is a short one.
    torch.testing.assert_close(classifier.features(images, batch_size=32), features, **close)
    torch.testing.assert_close(classifier.logits(images, batch_size=32), logits, **close)
    assert torch.equal(classifier.predict(images), logits.argmax(dim=1))


def test_distance_grows_with_noise(classifier: MNISTClassifier, digits: tuple[Tensor, Tensor], reference: Moments):
    images, labels = digits[0][-2000:], digits[1][-2000:]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    qualities = [
        evaluate_digits(
            (images + level * noise).round().clamp(0, 255).to(torch.uint8), labels, reference, classifier=classifier
        )
        for level in (0, 8, 16, 32)
    ]
    distances = [q.frechet_distance for q in qualities]
    assert all(b > 2 * a for a, b in zip(distances, distances[1:], strict=False)), distances
    assert qualities[0].accuracy > 0.99 > qualities[-1].accuracy


def test_distance_sees_a_missing_digit_that_accuracy_does_not(
    classifier: MNISTClassifier, digits: tuple[Tensor, Tensor], reference: Moments
):
    images, labels = digits[0][-2000:], digits[1][-2000:]
    kept = labels != 3
    complete = evaluate_digits(images, labels, reference, classifier=classifier)
    without = evaluate_digits(images[kept], labels[kept], reference, classifier=classifier)
    assert without.frechet_distance > 2 * complete.frechet_distance
    assert without.accuracy > 0.99
    assert without.num_images == int(kept.sum())
    assert math.isnan(without.per_class_accuracy[3])
    assert sum(math.isnan(a) for a in without.per_class_accuracy) == 1


def test_accuracy_is_against_the_labels_asked_for(
    classifier: MNISTClassifier, digits: tuple[Tensor, Tensor], reference: Moments
):
    images = digits[0][:200]
    asked = classifier.predict(images)
    wrong = asked == 7
    quality = evaluate_digits(images, torch.where(wrong, 1, asked), reference, classifier=classifier)
    ones = int((asked == 1).sum())
    assert quality.accuracy == pytest.approx(1 - wrong.sum().item() / 200)
    assert quality.per_class_accuracy[1] == pytest.approx(ones / (ones + int(wrong.sum())))
    assert quality.per_class_accuracy[2] == 1.0
    assert math.isnan(quality.per_class_accuracy[7])


def test_floor_against_the_test_images_themselves(scored: tuple[Tensor, Tensor]):
    assert frechet_floor(moments(scored[0])) < 1e-6


@pytest.mark.slow
def test_floor_against_the_training_images():
    reference = mnist.mnist_reference()
    assert reference.count == 60_000
    assert mnist.mnist_reference() is reference
    assert 0.02 < frechet_floor() < 0.03


def test_user_errors(classifier: MNISTClassifier, reference: Moments, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"\[N, 1, 28, 28\], got \[2, 3, 32, 32\]"):
        classifier.features_and_logits(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    blank = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    with pytest.raises(UserError, match="one label an image"):
        evaluate_digits(blank, torch.zeros(3, dtype=torch.int64), reference, classifier=classifier)
    with pytest.raises(UserError, match="at least 2"):
        evaluate_digits(blank[:1], torch.zeros(1, dtype=torch.int64), reference, classifier=classifier)
    with monkeypatch.context() as patch:
        patch.setattr(mnist_classifier, "WEIGHTS_SHA256", "0" * 64)
        with pytest.raises(UserError, match="sha256"):
            load_mnist_classifier()
    with monkeypatch.context() as patch:
        patch.setattr(mnist_classifier, "WEIGHTS_FILE", "absent.safetensors")
        with pytest.raises(UserError, match=r"absent\.safetensors: cannot read"):
            load_mnist_classifier()
