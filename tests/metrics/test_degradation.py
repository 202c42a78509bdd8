"""Every measure moves the right way when real digits are made worse, and stays at its floor when they are not."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from unistep.data import open_dataset
from unistep.metrics.estimate import Estimate
from unistep.metrics.features.mnist_classifier import MNISTClassifier, load_mnist_classifier
from unistep.metrics.frechet import frechet_distance
from unistep.metrics.inception_score import inception_score
from unistep.metrics.kernel import kernel_distance
from unistep.metrics.manifold import manifold_estimates
from unistep.metrics.moments import Moments, moments

HALF = 1800
COUNT = 800  # of the images that are made worse


class Digits(NamedTuple):
    """Two disjoint parts of the test images, in random order."""

    classifier: MNISTClassifier
    reference: Tensor  # features
    others: Tensor  # features
    images: Tensor  # those of `others`
    labels: Tensor


@pytest.fixture(scope="module")
def digits() -> Digits:
    dataset = open_dataset("mnist-test")
    chosen = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[: 2 * HALF]
    images, labels = dataset.images[chosen], dataset.labels[chosen]
    classifier = load_mnist_classifier()
    reference, others = classifier.features(images).split(HALF)
    return Digits(classifier, reference, others, images[HALF:], labels[HALF:])


def distance(a: Moments, b: Moments) -> float:
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def floor(covariance: Tensor, n: int, m: int) -> float:
    """Expected distance of n and m draws of one Gaussian, to second order in the moments' errors.

    The difference of the means has the covariance (1/n + 1/m) S, that of the covariances, in the eigenbasis of S,
    elements of variance (1/n + 1/m) (l_i l_j + [i = j] l_i^2). A difference E of covariances is at the squared distance
    sum_ij E_ij^2 / (2 (l_i + l_j)).
    """
    l = torch.linalg.eigvalsh(covariance).clamp(min=1e-12)  # noqa: E741
    means, covariances = l.sum(), (torch.outer(l, l) / (l[:, None] + l)).sum() / 2 + l.sum() / 4
    return ((1 / n + 1 / m) * (means + covariances)).item()


def test_the_floor_of_the_distance(digits: Digits):
    """Two halves of the same images, Gaussians of the same moments, and the formula."""
    features = torch.cat([digits.reference, digits.others])
    whole = moments(features)
    expected = floor(whole.covariance, HALF, HALF)

    generator = torch.Generator().manual_seed(1)
    halves = []
    for _ in range(20):
        order = torch.randperm(2 * HALF, generator=generator)
        halves.append(distance(moments(features[order[:HALF]]), moments(features[order[HALF:]])))

    values, vectors = torch.linalg.eigh(whole.covariance)
    root = vectors * values.clamp(min=0).sqrt()
    gaussians = []
    for _ in range(20):
        draws = torch.randn(2, HALF, len(root), generator=generator, dtype=torch.float64) @ root.T
        gaussians.append(distance(moments(draws[0]), moments(draws[1])))

    assert torch.tensor(gaussians).mean().item() == pytest.approx(expected, rel=0.12)
    assert torch.tensor(halves).mean().item() == pytest.approx(expected, rel=0.25)
    # Neither is below what the errors of the means make alone.
    assert min(*halves, *gaussians) > 0.5 * (2 / HALF) * whole.covariance.trace().item()


def blurred(images: Tensor, sigma: float) -> Tensor:
    taps = torch.exp(-torch.arange(-6, 7).square() / (2 * sigma**2))
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    rows = torch.nn.functional.conv2d(images.float(), taps, padding=(0, 6))
    return torch.nn.functional.conv2d(rows, taps.transpose(2, 3), padding=(6, 0)).round().clamp(0, 255).to(torch.uint8)


def noisy(images: Tensor, level: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    return (images + level * noise).round().clamp(0, 255).to(torch.uint8)


def measure(digits: Digits, images: Tensor) -> dict[str, Estimate]:
    features, logits = digits.classifier.features_and_logits(images)
    assert len(features) == COUNT
    found = manifold_estimates(digits.reference, features)
    found["kd"] = kernel_distance(features, digits.reference)
    found["is"] = inception_score(logits.double().softmax(dim=1)).estimate
    found["fd"] = Estimate(distance(moments(digits.reference), moments(features)), 0.0)
    return found


@pytest.fixture(scope="module")
def untouched(digits: Digits) -> dict[str, Estimate]:
    return measure(digits, digits.images[:COUNT])


def test_real_digits_are_good_by_every_measure(digits: Digits, untouched: dict[str, Estimate]):
    assert untouched["fd"].value < 2 * floor(moments(digits.reference).covariance, COUNT, HALF)
    assert abs(untouched["kd"].value) < 4 * untouched["kd"].standard_error
    for name in ("precision", "recall", "coverage"):
        assert 0.8 < untouched[name].value < 0.95, name
    assert untouched["density"].value == pytest.approx(1, abs=4 * untouched["density"].standard_error)
    assert 9.5 < untouched["is"].value < 10


def blur(digits: Digits, level: float) -> Tensor:
    return blurred(digits.images[:COUNT], level)


def noise(digits: Digits, level: float) -> Tensor:
    return noisy(digits.images[:COUNT], level)


def drop_classes(digits: Digits, level: float) -> Tensor:
    return digits.images[digits.labels < 10 - level][:COUNT]


LOWER = {"fd", "kd"}


@pytest.mark.parametrize(
    ("degrade", "levels", "unmoved"),
    [
        # The classifier is sure of digits that are a little worse: the score falls late.
        (blur, (0.8, 1.1, 1.5), {"is"}),
        (noise, (9, 13, 18), {"is"}),
        # Samples of fewer classes are as realistic as ever.
        (drop_classes, (1, 3, 5), {"precision", "density"}),
    ],
)
def test_measures_follow_the_degradation(
    degrade: Callable[[Digits, float], Tensor],
    levels: tuple[float, ...],
    unmoved: set[str],
    digits: Digits,
    untouched: dict[str, Estimate],
):
    """At each level they are worse than at the one before, beyond what the draw of the images could do."""
    series = [untouched, *(measure(digits, degrade(digits, level)) for level in levels)]
    for name in untouched:
        estimates = [found[name] for found in series]
        for before, after in zip(estimates, estimates[1:], strict=False):
            worse = (after.value - before.value) * (1 if name in LOWER else -1)
            error = math.hypot(before.standard_error, after.standard_error)
            if name not in unmoved:
                assert worse > 2 * error, (name, estimates)
            elif name != "is":
                assert abs(worse) < 3 * error, (name, estimates)
    distances = [found["fd"].value for found in series]
    assert all(after > 2 * before for before, after in zip(distances, distances[1:], strict=False)), distances
    assert series[3]["is"].value < 0.97 * series[0]["is"].value
