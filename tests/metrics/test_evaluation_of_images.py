"""Metrics put together: what they need, what is refused, and what is reported."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unistep.errors import UserError
from unistep.metrics.evaluation import evaluate_images, possible_metrics
from unistep.metrics.features.info import FeatureInfo
from unistep.metrics.frechet import frechet_distance
from unistep.metrics.metric import function_at
from unistep.metrics.moments import moments
from unistep.metrics.reference import Reference
from unistep.metrics.sources import DataSource
from unistep.metrics.statistics import Statistics, read_statistics, write_statistics
from unistep.metrics.table import METRICS, choose_metrics

INCEPTION = FeatureInfo(
    "inception", "Inception", "a", "legacy-tensorflow", {"pool": 2048, "spatial": 2023, "probabilities": 1008}
)


@pytest.fixture
def samples(pictures):
    return DataSource(pictures(700, seed=1), "samples")


@pytest.fixture
def reference(pictures):
    return Reference("reference", DataSource(pictures(900, seed=2, dark=0.9), "reference"))


def evaluate(samples, reference, network, names, **options):
    return evaluate_images(samples, reference, network, choose_metrics(names, network.info), **options)


def names_of(metrics):
    return [metric.name for metric in metrics]


def features(network, source, kind):
    return network(source.pixels, [kind])[kind]


def test_every_metric_is_there_and_right(samples, reference, linear, tmp_path):
    metrics = possible_metrics(reference, linear.info)
    assert names_of(metrics) == ["fd", "sfd", "kd", "is", "precision", "recall", "density", "coverage"]
    found = evaluate_images(samples, reference, linear, metrics, feature_cache=tmp_path)
    expected = {"fd", "fd_extrapolated", "sfd", "sfd_extrapolated", "kd", "is"}
    assert found.keys() == expected | {"precision", "recall", "density", "coverage"}
    for name, kind in (("fd", "pool"), ("sfd", "spatial")):
        a, b = (moments(features(linear, source, kind)) for source in (samples, reference.images))
        distance = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
        assert found[name].estimate.value == pytest.approx(distance, rel=1e-9)
    for name, result in found.items():
        low, high = result.estimate.interval
        assert low <= result.estimate.value <= high, name
        assert result.estimate.standard_error > 0, name
        assert (result.better == "lower") == (name[:2] in ("fd", "sf", "kd"))
    assert found.warnings == ()


def test_json_tells_all_that_matters(samples, reference, linear, tmp_path):
    report = evaluate(samples, reference, linear, ["fd"], feature_cache=tmp_path)
    content = json.loads(json.dumps(report.to_dict()))
    assert content["metrics"]["fd"]["title"] == "FD-Linear"
    low, high = content["metrics"]["fd"]["interval_95"]
    assert low < content["metrics"]["fd"]["value"] < high
    assert content["features"]["sha256"] == "linear" and content["features"]["resize"] == "none"
    assert content["samples"]["count"] == 700 and content["reference"]["count"] == 900
    assert content["samples"]["sha256"] == samples.digest
    assert (
        content["made"]["torch"] == torch.__version__.partition("+")[0] or content["made"]["torch"] == torch.__version__
    )


def test_statistics_do_for_the_frechet_distances(samples, reference, linear, tmp_path):
    whole = evaluate(samples, reference, linear, ["fd", "sfd"], feature_cache=tmp_path)
    write_statistics(tmp_path / "r.npz", whole.reference_moments, linear.info, {})
    alone = Reference("r.npz", statistics=read_statistics(tmp_path / "r.npz"))
    assert names_of(possible_metrics(alone, linear.info)) == ["fd", "sfd", "is"]
    again = evaluate(samples, alone, linear, ["fd", "sfd"], feature_cache=tmp_path)
    for a, b in zip(whole.results, again.results, strict=True):
        assert a.estimate.value == pytest.approx(b.estimate.value, rel=1e-12)


def test_openais_files_give_statistics_to_inception_and_images_to_others(samples, pictures, linear, tmp_path):
    images = DataSource(pictures(900, seed=2), "r.npz")
    wrong = moments(torch.randn(50, 2048, generator=torch.Generator().manual_seed(0)))
    published = Statistics({"pool": wrong}, "r.npz", {}, has_images=True)
    report = evaluate(samples, Reference("r.npz", images, published), linear, ["fd"], feature_cache=tmp_path)
    plain = evaluate(samples, Reference("r.npz", images), linear, ["fd"], feature_cache=tmp_path)
    assert report.results[0].estimate == plain.results[0].estimate
    assert Reference("r.npz", images, published).statistics_for(INCEPTION) is published


def test_too_few_samples_are_told(samples, pictures, linear, tmp_path):
    network = type(linear)(64, {"pool": 64})
    few = DataSource(samples.pixels[:60], "few")
    report = evaluate(few, Reference("r", DataSource(pictures(50, 3), "r")), network, ["fd"], feature_cache=tmp_path)
    assert [line.partition(":")[0] for line in report.warnings] == ["FD-Linear is biased"] * 2
    assert "60 samples" in report.warnings[0] and "64 dimensions" in report.warnings[0]
    assert "the reference has 50 images" in report.warnings[1]
    assert not any("\n" in line for line in report.warnings)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_hardly_any_samples(samples, reference, linear, tmp_path, count):
    """One clear line, or a result with its warning."""
    for name in ("fd", "kd", "is", "pr", "dc"):
        few = DataSource(samples.pixels[:count], "few")
        try:
            report = evaluate(few, reference, linear, [name], feature_cache=tmp_path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(np.isfinite(result.estimate.value) for result in report.results)


def test_identical_sets(samples, linear, tmp_path):
    same = Reference("samples", samples)
    report = evaluate(samples, same, linear, ["fd", "kd", "pr", "dc"], feature_cache=tmp_path)
    found = {result.name: result.estimate.value for result in report.results}
    assert found["fd"] < 1e-12 and found["precision"] == found["recall"] == found["coverage"] == 1
    assert sum(linear.seen) == 700  # the reference's features are the samples'


def test_wrong_partners(samples, reference, linear, tmp_path, pictures):
    def refused(*words: str, reference: Reference | None = reference, names: tuple[str, ...] = ("fd",)) -> None:
        with pytest.raises(UserError) as caught:
            evaluate(samples, reference, linear, names, feature_cache=tmp_path / "none")
        message = str(caught.value)
        assert "\n" not in message
        assert [word for word in words if word not in message] == []
        assert not (tmp_path / "none").exists()  # nothing was computed

    refused("fd, kd need a `reference`", reference=None, names=("fd", "kd", "is"))
    wide = Reference("wide", DataSource(torch.zeros(50, 1, 8, 16, dtype=torch.uint8), "wide"))
    refused("8x8x1", "wide of 16x8x1", "`resolution` 8", reference=wide)
    colour = Reference("colour", DataSource(torch.zeros(50, 3, 8, 8, dtype=torch.uint8), "colour"))
    refused("8x8x1", "colour of 8x8x3", "`channels` 1", reference=colour)
    ours = Statistics({"pool": moments(torch.rand(50, 6))}, "s.npz", {"key": "other", "features": "dinov2"})
    refused("s.npz", "dinov2", "do not compare", reference=Reference("s.npz", statistics=ours))
    good = Statistics({"pool": moments(torch.rand(50, 6))}, "s.npz", {"key": linear.info.key})
    refused("kd", "statistics alone", reference=Reference("s.npz", statistics=good), names=("kd",))
    refused("s.npz", "spatial", reference=Reference("s.npz", statistics=good), names=("sfd",))


def test_names_of_metrics(linear):
    assert names_of(choose_metrics(["fid", "sfid", "kid", "is", "fd"], INCEPTION)) == ["fd", "sfd", "kd", "is"]
    assert names_of(choose_metrics(["dc", "precision", "pr", "nn"], INCEPTION)) == [
        "density",
        "coverage",
        "precision",
        "recall",
        "copies",
    ]
    for given, words in {
        "fid": "fid is computed from the features of inception, not of linear; name fd",
        "frechet": "`metrics` frechet is unknown; choose from fd, sfd, kd, is, precision",
        "kdd": "did you mean kd?",
        "": "`metrics` '' is unknown",
    }.items():
        with pytest.raises(UserError, match="^[^\n]*$") as caught:
            choose_metrics([given], linear.info)
        assert words in str(caught.value)
    with pytest.raises(UserError, match="sfd needs spatial features, which pools lacks"):
        choose_metrics(["sfd"], FeatureInfo("pools", "", "", "none", {"pool": 3}))
    with pytest.raises(UserError, match="`metrics` is empty"):
        choose_metrics([], INCEPTION)


def test_only_inceptions_distance_is_called_fid(linear):
    assert [METRICS[name].title_with(INCEPTION) for name in ("fd", "sfd", "kd", "is")] == ["FID", "sFID", "KID", "IS"]
    clean = FeatureInfo("inception", "", "", "clean", {})
    assert METRICS["fd"].title_with(clean) == "FID (clean resize)"
    assert METRICS["fd"].title_with(linear.info) == "FD-Linear"
    assert METRICS["kd"].title_with(dataclasses.replace(linear.info, resize="legacy-tensorflow")) == (
        "KD-Linear (legacy-tensorflow resize)"
    )
    assert all("FID" not in metric.title_with(linear.info) for metric in METRICS.values())


def test_the_functions_of_the_table_are_there():
    for metric in METRICS.values():
        assert callable(function_at(metric.compute))
        assert not metric.value or callable(function_at(metric.value))


def test_copies_are_found(samples, reference, linear, tmp_path):
    assert reference.images is not None
    copied = samples.pixels.clone()
    copied[:35] = reference.images.images(range(100, 135))
    report = evaluate(DataSource(copied, "copied"), reference, linear, ["nn"], feature_cache=tmp_path)
    clean = evaluate(samples, reference, linear, ["nn"], feature_cache=tmp_path)
    assert set(report.pictures) == {"neighbours"}
    gained = report.results[0].estimate.value - clean.results[0].estimate.value
    assert report.results[0].name == "copies"
    assert gained == pytest.approx(0.05, abs=0.005)
    # Near are all that copy, and of the others about as many as before.
    assert [found.name for found in report.results] == ["copies", "copies_in_reference", "copies_near"]
    more = report.results[2].estimate.value - clean.results[2].estimate.value
    assert 0.04 < more <= 0.05
    assert report.results[0].notes["near_distance"] < report.results[0].notes["median_distance_in_reference"]


def test_the_cache_is_where_it_is_said(samples, reference, linear, tmp_path: Path):
    evaluate(samples, reference, linear, ["fd"], feature_cache=tmp_path / "here")
    about = [json.loads(path.read_text()) for path in (tmp_path / "here").glob("*/about.json")]
    assert {entry["images"]["name"] for entry in about} == {"samples", "reference"}
    assert {entry["kind"] for entry in about} == {"pool"}
