"""Samples against a reference: features once, then every measure that is asked for.

    source -> features (kept on disk, shared by processes) -> moments (merged) and vectors -> results with their errors

Frechet distances are measured in one pass over the features, in memory that does not depend on how many there are; the
other measures need all features at once. What is measured on the reference's vectors needs its images; files of
statistics do for the Frechet distances alone. Precision, recall, density and coverage take no more of the reference
than there are samples, evenly spread: with many more of one kind than of the other, coverage says how many there are.
"""

import datetime
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.features.extract import extract
from unistep.metrics.features.protocol import KINDS, FeatureInfo, FeatureNetwork, Kind
from unistep.metrics.features.store import StoredFeatures
from unistep.metrics.frechet import frechet_estimate
from unistep.metrics.inception_score import inception_score
from unistep.metrics.kernel import kernel_distance
from unistep.metrics.manifold import manifold_estimates
from unistep.metrics.measures import MEASURES, Result, title
from unistep.metrics.moments import GroupedMoments, Moments
from unistep.metrics.neighbours import Neighbours, memorised, nearest
from unistep.metrics.sources import ImageSource
from unistep.metrics.statistics import Statistics
from unistep.pipelines.collect import share
from unistep.pipelines.processes import Processes

_NEIGHBOURS = 6  # of a sample, that a picture shows
_MANIFOLD = {"pr": ("precision", "recall"), "dc": ("density", "coverage")}

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: images, statistics of them, or both, as in OpenAI's files."""

    name: str
    images: ImageSource | None = None
    statistics: Statistics | None = None

    def statistics_for(self, info: FeatureInfo) -> Statistics | None:
        """The statistics, where they are of this network; None where the images have to be looked at.

        Raises:
            UserError: they are of another network, and there are no images.
        """
        if self.statistics is None:
            return None
        try:
            self.statistics.check(info)
        except UserError:
            if self.images is None:
                raise
            return None
        return self.statistics

    def describe(self) -> dict[str, Any]:
        """As JSON takes it."""
        found = {} if self.images is None else self.images.describe()
        if self.statistics is not None:
            found = {"kind": "statistics", "name": self.name, "statistics": self.statistics.about} | found
        return found


@dataclass(frozen=True)
class Report:
    """What was measured, and all that it depends on."""

    results: list[Result]
    samples: dict[str, Any]
    reference: dict[str, Any] | None
    features: FeatureInfo
    warnings: list[str]
    reference_moments: dict[Kind, Moments] = field(repr=False)
    neighbours: Neighbours | None = field(default=None, repr=False)

    def as_json(self) -> dict[str, Any]:
        """The content of metrics.json."""
        info = self.features
        return {
            "metrics": {result.name: result.as_json() for result in self.results},
            "features": {
                "name": info.name,
                "sha256": info.digest,
                "resize": info.resize,
                "dimensions": {kind: info.dims[kind] for kind in KINDS if kind in info.dims},
                "key": info.key,
            },
            "samples": self.samples,
            "reference": self.reference,
            "warnings": self.warnings,
            "made": {
                "on": datetime.date.today().isoformat(),
                **{name: version(name) for name in ("unistep", "torch", "numpy", "pillow")},
                "python": platform.python_version(),
                "machine": platform.machine(),
            },
        }


def possible_measures(reference: Reference | None, info: FeatureInfo) -> list[str]:
    """All measures that the network and the reference allow; but for `nn`, whose outcome is a picture."""
    chosen = []
    for name, measure in MEASURES.items():
        if name == "nn" or measure.kind not in info.dims or (measure.reference and reference is None):
            continue
        if measure.images and measure.reference and reference is not None and reference.images is None:
            continue
        if measure.kind == "spatial" and not _has(reference, info, "spatial"):
            continue
        chosen.append(name)
    return chosen


def evaluate(
    samples: ImageSource,
    reference: Reference | None,
    network: FeatureNetwork,
    measures: Sequence[str],
    *,
    feature_cache: Path,
    processes: Processes | None = None,
    on_progress: Progress | None = None,
    save_kinds: Sequence[Kind] = (),
) -> Report | None:
    """Measures samples; returns the report on the first process, None on the others.

    Args:
        samples: what is measured.
        reference: what it is compared with; None where no measure needs one.
        network: of features.
        measures: names of `MEASURES`, as `check_measures` gives them.
        feature_cache: where features are kept.
        processes: which this one is; None is the only one.
        on_progress: see `Progress`.
        save_kinds: features of the reference whose moments are wanted beside those that the measures need.

    Raises:
        UserError: a measure needs what is not there, the reference is of another network, or there are too few images.
    """
    processes = processes or Processes()
    say = on_progress if on_progress is not None and processes.first else _silent
    info = network.info
    warnings: list[str] = []
    moments_of, vectors = _needs(measures)
    _check(samples, reference, info, measures, {*moments_of, *save_kinds})
    statistics = None if reference is None else reference.statistics_for(info)

    def features(source: ImageSource, kinds: set[Kind], what: str) -> dict[Kind, StoredFeatures]:
        def told(done: int) -> None:
            say(f"features of the {what}", done, source.count)

        told(0)
        return extract(source, network, sorted(kinds), feature_cache, processes=processes, on_done=told)

    of_samples = features(samples, {MEASURES[name].kind for name in measures}, "samples")
    known = {} if statistics is None else statistics.moments
    of_reference: dict[Kind, StoredFeatures] = {}
    wanted: set[Kind] = {kind for kind in (*moments_of, *save_kinds) if kind not in known}
    if vectors:
        wanted.add("pool")
    if wanted and reference is not None and reference.images is not None:
        of_reference = features(reference.images, wanted, "reference")

    found: dict[Kind, GroupedMoments | None] = {kind: _moments(of_samples[kind], processes) for kind in moments_of}
    totals: dict[Kind, Moments] = dict(known)
    for kind in (*moments_of, *save_kinds):
        if kind not in totals:
            merged = _moments(of_reference[kind], processes)
            if merged is not None:
                totals[kind] = merged.total()
    if not processes.first:
        processes.wait()  # for the first, which measures
        return None

    results: list[Result] = []
    neighbours: Neighbours | None = None
    for name in measures:
        say(MEASURES[name].text, 0, 0)
        kind = MEASURES[name].kind
        if name in ("fd", "sfd"):
            grouped = found[kind]
            assert grouped is not None  # on the first process
            results += _frechet(name, info, grouped, totals[kind], warnings)
        elif name == "is":
            score = inception_score(of_samples[kind].all())
            results.append(Result("is", title("is", info), score.estimate, "higher", {"std_of_parts": score.std}))
        elif name == "kd":
            distance = kernel_distance(of_samples[kind].all(), of_reference[kind].all())
            results.append(Result("kd", title("kd", info), distance, "lower", {}))
        elif name == "nn":
            neighbours = nearest(of_samples[kind].all(), of_reference[kind].blocks(), _NEIGHBOURS)
            results.append(Result("copies", "copies among samples", memorised(neighbours), "lower", {}))
            results.append(_copies_in_reference(of_reference[kind], samples.count))
    if {"pr", "dc"} & set(measures):
        chosen = _spread(of_reference["pool"].count, samples.count)
        estimates = manifold_estimates(
            of_reference["pool"].all()[chosen],
            of_samples["pool"].all(),
            on_progress=lambda done, total: say("nearest neighbours", done, total),
        )
        for name in measures:
            for key in _MANIFOLD.get(name, ()):
                results.append(Result(key, key, estimates[key], "higher", {"reference_count": len(chosen)}))
    processes.wait()
    described = None if reference is None else reference.describe()
    return Report(results, samples.describe(), described, info, warnings, totals, neighbours)


def check_alike(name: str, shape: tuple[int, int, int], reference: Reference | None) -> None:
    """Refuses a reference of other images than are measured: the two would be brought differently to the network.

    Args:
        name: of what is measured.
        shape: channels, height, width of its images.
        reference: what it is to be compared with.

    Raises:
        UserError: their sizes or channels differ.
    """
    if reference is None or reference.images is None or reference.images.shape == shape:
        return
    (channels, height, width), (other, *size) = shape, reference.images.shape
    remedy = f"bring it to that with --resolution {height} --channels {channels}"
    if height != width:
        remedy = "take a reference of that size"
    raise UserError(
        f"{name} has images of {width}x{height}x{channels}, {reference.name} of {size[1]}x{size[0]}x{other}: {remedy}"
    )


def _silent(what: str, done: int, total: int) -> None:
    return None


def _has(reference: Reference | None, info: FeatureInfo, kind: Kind) -> bool:
    """Whether moments of a kind can be had of the reference."""
    if reference is None:
        return False
    if reference.images is not None:
        return True
    return reference.statistics is not None and kind in reference.statistics.moments


def _needs(measures: Sequence[str]) -> tuple[list[Kind], bool]:
    """The kinds of features whose moments are needed, and whether the reference's vectors are."""
    moments_of: list[Kind] = [MEASURES[name].kind for name in measures if name in ("fd", "sfd")]
    return moments_of, any(MEASURES[name].images for name in measures)


def _check(
    samples: ImageSource,
    reference: Reference | None,
    info: FeatureInfo,
    measures: Sequence[str],
    kinds: set[Kind],
) -> None:
    """Refuses what cannot be done, before anything is."""
    needing = [name for name in measures if MEASURES[name].reference]
    if reference is None:
        if needing:
            raise UserError(f"{', '.join(needing)} need a reference: give --reference DATA, or statistics of it")
        return
    check_alike(samples.name, samples.shape, reference)
    statistics = reference.statistics_for(info)
    for name in measures:
        if MEASURES[name].images and reference.images is None:
            raise UserError(
                f"{name} needs the reference's images, and {reference.name} holds statistics alone; leave {name} out, "
                "or give the images"
            )
    for kind in kinds:
        if reference.images is None and (statistics is None or kind not in statistics.moments):
            raise UserError(
                f"{reference.name} has no {kind} statistics; leave out the measures that need them, or give its images"
            )


def _moments(entry: StoredFeatures, processes: Processes) -> GroupedMoments | None:
    """The moments of all features, each process's share merged; on the first process."""
    mine = GroupedMoments(entry.dim)
    parts = entry.parts()
    first, end = share(len(parts), processes)
    for part in parts[first:end]:
        mine.update(entry.read(part), part.start)
    states = processes.gather(mine.state())
    if not states:
        return None
    merged = GroupedMoments.from_state(states[0])
    for state in states[1:]:
        merged.merge(GroupedMoments.from_state(state))
    return merged


def _spread(count: int, most: int) -> Int64[Tensor, "_"]:
    """`most` of `count` indices, evenly spread; all where there are no more."""
    return torch.arange(min(count, most)) * count // min(count, most)


def _copies_in_reference(entry: StoredFeatures, most: int) -> Result:
    """The share of the reference's own images, as many as there are samples at most, that copy another of them."""
    chosen = _spread(entry.count, most)
    found = nearest(entry.all()[chosen], entry.blocks(), 2, own=chosen)
    return Result("copies_in_reference", "copies in the reference", memorised(found), "lower", {})


def _frechet(
    name: str, info: FeatureInfo, samples: GroupedMoments, reference: Moments, warnings: list[str]
) -> list[Result]:
    estimate = frechet_estimate(samples, reference)
    text = title(name, info)
    if estimate.biased:
        warnings.append(
            f"{text} is biased: {estimate.count} samples are not more than the {estimate.dim} dimensions of their "
            "features; compare it only with figures of as many samples, or make more"
        )
    if 0 < reference.count <= estimate.dim:
        warnings.append(
            f"{text} is biased: the reference has {reference.count} images, not more than the {estimate.dim} "
            "dimensions of their features"
        )
    distance = Result(name, text, estimate.distance, "lower", {"count": estimate.count})
    if estimate.biased:  # too much for an extrapolation of first order
        return [distance]
    return [distance, Result(f"{name}_extrapolated", f"{text}, N → ∞", estimate.extrapolated, "lower", {})]
