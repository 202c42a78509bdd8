"""Agreement: the share of samples that a classifier assigns to the class asked for."""

from pathlib import Path

import pytest
import torch

from unistep import open_dataset
from unistep.errors import UserError
from unistep.metrics.agreement import agreement
from unistep.metrics.evaluation import evaluate_images
from unistep.metrics.features.mnist import MNIST
from unistep.metrics.features.mnist_classifier import load_mnist_classifier
from unistep.metrics.sources import DataSource
from unistep.metrics.table import choose_metrics, need_classes
from unistep.workflows.evaluate import evaluate


def test_the_share_and_its_error():
    probabilities = torch.eye(4)[[0, 1, 2, 3, 0, 0, 0, 0]]
    found = agreement(probabilities, torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]))
    assert found.value == 5 / 8
    assert found.interval[0] < 0.4 and 0.85 < found.interval[1] <= 1
    with pytest.raises(UserError, match="8 samples have 7 labels"):
        agreement(probabilities, torch.zeros(7, dtype=torch.int64))


def test_of_test_images_it_is_the_accuracy_of_the_classifier(tmp_path: Path):
    digits = open_dataset("mnist-test")
    assert digits.labels is not None
    report = evaluate(digits, features="mnist", metrics=["agreement"], num_images=300, feature_cache=tmp_path)
    right = load_mnist_classifier().predict(digits.images[:300]) == digits.labels[:300]
    assert report["agreement"].value == right.double().mean().item()
    by_class = report["agreement"].notes["of_classes"]
    assert by_class["7"] == right[digits.labels[:300] == 7].double().mean().item() and len(by_class) == 10
    again = evaluate("mnist-test", features="mnist", metrics=["agreement"], num_images=300, feature_cache=tmp_path)
    assert again["agreement"].estimate == report["agreement"].estimate


def test_of_a_model_the_class_asked_for_counts(tmp_path: Path):
    options = {"features": "mnist", "metrics": ["agreement"], "num_images": 20, "feature_cache": tmp_path}
    found = evaluate(class_labels=[3, 5], **options)["agreement"]
    assert found.value > 0.8 and found.notes["of_classes"].keys() == {"3", "5"}
    assert evaluate(**options)["agreement"].value > 0.8


def test_the_labels_may_change_while_features_are_kept(tmp_path: Path):
    digits = open_dataset("mnist-test")
    assert digits.labels is not None
    network, metrics = MNIST(), choose_metrics(["agreement"], MNIST().info)

    def value(classes):
        source = DataSource(digits.images[:64], "digits", None, classes)
        return evaluate_images(source, None, network, metrics, feature_cache=tmp_path)["agreement"].value

    assert value(digits.labels[:64]) > 0.9 > 0.2 > value((digits.labels[:64] + 1) % 10)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, "needs the class of each sample, and digits has none"),
        (torch.full((64,), 10), "has a class 10, and those"),
    ],
)
def test_samples_without_such_classes_are_refused(classes, message, tmp_path: Path):
    source = DataSource(open_dataset("mnist-test").images[:64], "digits", None, classes)
    with pytest.raises(UserError, match=message):
        evaluate_images(source, None, MNIST(), choose_metrics(["agreement"], MNIST().info), feature_cache=tmp_path)


def test_networks_of_other_classes_are_refused(tmp_path: Path):
    with pytest.raises(
        UserError, match="agreement needs a classifier of the samples' classes, which effnet-lite0 is not"
    ):
        evaluate(features="effnet-lite0", metrics=["agreement"], num_images=2, feature_cache=tmp_path)


def test_need_classes():
    assert need_classes(["fd", "agreement"]) and not need_classes(["fd", "nn"]) and not need_classes(())
