"""Quality of generated MNIST digits by the MNIST classifier: accuracy and Frechet distance.

The labels of the classifier show whether a class-conditional model drew the digit that was asked for. The distances
compare only with distances of this same classifier. They are not FID.
"""

import functools
from dataclasses import dataclass

from jaxtyping import Int64, UInt8
from torch import Tensor

from unistep.data import open_dataset
from unistep.errors import UserError
from unistep.metrics.features.mnist_classifier import FEATURE_DIM, NUM_CLASSES, MNISTClassifier, load_mnist_classifier
from unistep.metrics.frechet import frechet_distance
from unistep.metrics.moments import Moments, StreamingMoments, moments


@dataclass(frozen=True)
class DigitQuality:
    """Quality of generated digits by the classifier.

    Args:
        accuracy: share of images classified as the digit that was asked for, in [0, 1].
        frechet_distance: distance of the features to the reference; lower is better, `frechet_floor` is perfect.
        per_class_accuracy: accuracy for each of the ten digits, NaN where a digit was not asked for.
        num_images: number of digits.
    """

    accuracy: float
    frechet_distance: float
    per_class_accuracy: tuple[float, ...]
    num_images: int


def evaluate_digits(
    images: UInt8[Tensor, "N C H W"],
    labels: Int64[Tensor, "M"],
    reference: Moments,
    *,
    classifier: MNISTClassifier | None = None,
) -> DigitQuality:
    """Compares digits with the labels that they were drawn for, and with real digits.

    The Frechet distance shrinks as N grows, so compare at equal N.

    Args:
        images: digits [N, 1, 28, 28].
        labels: digits [N] that were asked for.
        reference: moments of the features of real digits.
        classifier: classifier; None loads the published one on the CPU.

    Raises:
        UserError: a shape is wrong, the labels are of another number, or there are fewer than two images.
    """
    if labels.shape != images.shape[:1]:
        raise UserError(f"{len(images)} images have labels of shape {list(labels.shape)}; give one label an image")
    features, logits = (classifier or load_mnist_classifier()).features_and_logits(images)
    found = moments(features)
    labels = labels.cpu()
    correct = (logits.argmax(dim=1) == labels).double()
    per_class = tuple(correct[labels == digit].mean().item() for digit in range(NUM_CLASSES))
    distance = frechet_distance(found.mean, found.covariance, reference.mean, reference.covariance)
    return DigitQuality(correct.mean().item(), distance, per_class, len(images))


def _real_moments(dataset: str) -> Moments:
    classifier = load_mnist_classifier()
    stream = StreamingMoments(FEATURE_DIM)
    for images in open_dataset(dataset).images.split(5000):
        stream.update(classifier.features(images))
    return stream.result()


@functools.cache
def mnist_reference() -> Moments:
    """Returns the feature moments of the 60,000 training images; about 20 s on one core, once a process."""
    return _real_moments("mnist")


def frechet_floor(reference: Moments | None = None) -> float:
    """Returns the distance of the 10,000 real test images, which no generator of as many samples can be below.

    Args:
        reference: moments of the reference; None is the training images.
    """
    reference = reference or mnist_reference()
    test = _real_moments("mnist-test")
    return frechet_distance(test.mean, test.covariance, reference.mean, reference.covariance)
