"""A metric as one number, and its error by the jackknife."""

import math

import pytest
import torch

from unistep.errors import UserError
from unistep.metrics.features.info import FeatureInfo
from unistep.metrics.frechet import frechet_distance
from unistep.metrics.inception_score import inception_score
from unistep.metrics.kernel import kernel_distance
from unistep.metrics.manifold import density_coverage, precision_recall
from unistep.metrics.moments import moments
from unistep.metrics.reference import Reference
from unistep.metrics.sources import DataSource
from unistep.metrics.statistics import Statistics
from unistep.metrics.table import METRICS
from unistep.searching.metric import SearchMetric, jackknife, open_search_metric
from unistep.searching.table import SAMPLE_METRICS


class Pixels:
    """Features of 1x4x4 images: the pixels, the first four of them, and a softmax over them."""

    def __init__(self, digest="0" * 64, dims=None):
        dims = dims or {"pool": 16, "spatial": 4, "probabilities": 16}
        self.info = FeatureInfo("pixels", "Pixels", digest, "none", dims)

    def __call__(self, images, kinds):
        flat = images.flatten(1).float() / 255
        found = {"pool": flat, "spatial": flat[:, :4], "probabilities": flat.softmax(1)}
        return {kind: found[kind] for kind in kinds}


def images(count, seed=0, low=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)


def reference(count=300, seed=0):
    return Reference("data", DataSource(images(count, seed), "data"))


@pytest.fixture
def features():
    return Pixels()(images(60, seed=5, low=60), ["pool", "spatial", "probabilities"])


# -------------------------------------------------------------------------------------------------------- the number


def expected(metric, ours, theirs):
    if metric in ("fd", "sfd"):
        a, b = moments(ours), moments(theirs)
        return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    if metric == "kd":
        return kernel_distance(ours, theirs).value
    if metric == "is":
        return inception_score(ours).mean
    both = precision_recall if metric in ("precision", "recall") else density_coverage
    return getattr(both(theirs, ours), metric)


def opened(name, *arguments):
    return open_search_metric(SAMPLE_METRICS[name], *arguments)


@pytest.mark.parametrize("metric", SAMPLE_METRICS)
def test_the_number_is_that_of_the_metric(metric, features, tmp_path):
    told = []
    found = opened(metric, Pixels(), reference(), tmp_path, lambda done, total: told.append((done, total)))
    theirs = Pixels()(images(300), [found.kind])[found.kind]
    ours = features[found.kind]
    assert found.kind == {"sfd": "spatial", "is": "probabilities"}.get(metric, "pool")
    assert found.value(ours) == pytest.approx(expected(metric, ours, theirs), rel=1e-9)
    assert found.better == ("lower" if metric in ("fd", "sfd", "kd") else "higher")
    worse = images(60, seed=6, low=250)
    assert (found.value(Pixels()(worse, [found.kind])[found.kind]) > found.value(ours)) is (found.better == "lower")
    assert (told[-1:] == [(300, 300)]) is (metric != "is")


def test_statistics_do_for_frechet_distances(features, tmp_path):
    known = moments(Pixels()(images(300), ["pool"])["pool"])
    statistics = Statistics({"pool": known}, "stats.npz", {"key": Pixels().info.key})
    of_statistics = opened("fd", Pixels(), Reference("stats.npz", None, statistics), tmp_path)
    of_images = opened("fd", Pixels(), reference(), tmp_path)
    assert of_statistics.value(features["pool"]) == pytest.approx(of_images.value(features["pool"]), rel=1e-9)
    for metric, words in (
        ("kd", "kd needs the images of the reference, and stats.npz holds statistics alone"),
        ("precision", "precision needs the images of the reference"),
        ("sfd", "stats.npz has no spatial statistics, which sfd needs; give its images"),
    ):
        with pytest.raises(UserError, match=words):
            opened(metric, Pixels(), Reference("stats.npz", None, statistics), tmp_path)


def test_of_many_vectors_some_from_everywhere(monkeypatch, features, tmp_path):
    """Data are often sorted by class."""
    monkeypatch.setattr("unistep.searching.metric._MOST_VECTORS", 70)
    found = opened("kd", Pixels(), reference(300), tmp_path)
    some = Pixels()(images(300)[::5], ["pool"])["pool"]
    assert found.value(features["pool"]) == pytest.approx(kernel_distance(features["pool"], some).value)


def test_the_digest_tells_what_a_number_depends_on(tmp_path):
    def digest(metric="fd", network=None, of=None):
        return opened(metric, network or Pixels(), of or reference(), tmp_path).digest

    assert digest() == digest()
    others = [digest("kd"), digest("sfd"), digest("is"), digest(network=Pixels("1" * 64)), digest(of=reference(299))]
    assert len({digest(), *others, digest(of=reference(seed=1)), digest("kd", of=reference(seed=1))}) == 8


@pytest.mark.parametrize(
    ("metric", "dims", "of", "message"),
    [
        ("is", {"pool": 16}, reference(), "is needs probabilities features, which pixels lacks"),
        ("sfd", {"pool": 16}, reference(), "sfd needs spatial features"),
        ("fd", None, None, "fd needs a `reference`; give a dataset or statistics"),
    ],
)
def test_what_cannot_be_computed(metric, dims, of, message, tmp_path):
    with pytest.raises(UserError, match=message):
        opened(metric, Pixels(dims=dims), of, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_another_network(tmp_path):
    known = moments(torch.randn(30, 16, generator=torch.Generator().manual_seed(0)))
    other = Reference(
        "stats.npz", None, Statistics({"pool": known}, "stats.npz", {"key": "x", "features": "inception"})
    )
    with pytest.raises(UserError, match="stats.npz was made with inception"):
        opened("fd", Pixels(), other, tmp_path)


# --------------------------------------------------------------------------------------------------------- its error


def metric_of(value):
    return SearchMetric(METRICS["fd"], "FD", "", value)


def test_the_error_of_a_mean_is_the_known_one():
    """Image i is of group i mod 10, so the error is that of the groups' means."""
    x = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    without = metric_of(lambda f: f.mean().item()).without_groups(x)
    groups = x.view(20, 10).mean(dim=0)
    found = jackknife(x.mean().item(), without)
    assert found.value == pytest.approx(x.mean().item())
    assert found == jackknife(found.value, [w + 0 for w in without]) and found.interval[0] < found.value
    bounded = metric_of(lambda f: 0.0).estimate(1e-9, without)
    assert bounded.standard_error == found.standard_error and bounded.interval[0] == 0
    assert found.standard_error == pytest.approx(groups.std().item() / math.sqrt(10), rel=1e-5)


def test_the_errors_are_those_of_repeated_draws():
    """Of the Frechet distance of one feature to N(0, 1), and of the difference of two whose samples share noise."""
    generator = torch.Generator().manual_seed(0)

    def distance(f):
        return (f.mean().square() + (f.std() - 1).square()).item()

    found = metric_of(distance)
    values, differences, errors, paired = [], [], [], []
    for _ in range(200):
        noise = torch.randn(300, 1, generator=generator)
        a, b = 1.5 * noise + 0.4, 1.6 * noise + 0.4
        without = [found.without_groups(f) for f in (a, b)]
        values.append(distance(a))
        differences.append(distance(a) - distance(b))
        errors.append(jackknife(values[-1], without[0]).standard_error)
        paired.append(jackknife(differences[-1], [v - w for v, w in zip(*without, strict=True)]).standard_error)
    spread, mean_error = torch.tensor(values).std().item(), torch.tensor(errors).square().mean().sqrt().item()
    assert 0.85 < mean_error / spread < 1.2
    spread_of_differences = torch.tensor(differences).std().item()
    assert 0.85 < torch.tensor(paired).square().mean().sqrt().item() / spread_of_differences < 1.2
    assert spread_of_differences < spread / 3
