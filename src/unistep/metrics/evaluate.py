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
from unistep.generation.collect import share
from unistep.metrics.estimate import Estimate
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
from unistep.metrics.reference import Reference, check_alike
from unistep.metrics.sources import ImageSource
from unistep.runtime.processes import Processes

_NEIGHBOURS = 6  # of a sample, that a picture shows
_MANIFOLD = {"pr": ("precision", "recall"), "dc": ("density", "coverage")}

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


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
    moments_of: list[Kind] = [MEASURES[name].kind for name in measures if name in ("fd", "sfd")]
    _check(samples, reference, network.info, measures, {*moments_of, *save_kinds})
    found = _gather(samples, reference, network, measures, moments_of, save_kinds, feature_cache, processes, say)
    if found is None:
        processes.wait()  # for the first, which measures
        return None
    results, warnings = _results(found, network.info, measures, say)
    neighbours: Neighbours | None = None
    if "nn" in measures:
        say(MEASURES["nn"].text, 0, 0)
        vectors = found.of_reference["pool"]
        neighbours = nearest(found.of_samples["pool"].all(), vectors.blocks(), _NEIGHBOURS)
        results.append(Result("copies", "copies among samples", memorised(neighbours), "lower", {}))
        results.append(_copies_in_reference(vectors, samples.count))
    processes.wait()
    described = None if reference is None else reference.describe()
    return Report(results, samples.describe(), described, network.info, warnings, found.totals, neighbours)


@dataclass(frozen=True)
class _Found:
    """What measures are computed from: features that are kept, and moments of them."""

    of_samples: dict[Kind, StoredFeatures]
    of_reference: dict[Kind, StoredFeatures]
    grouped: dict[Kind, GroupedMoments]
    totals: dict[Kind, Moments]


def _gather(
    samples: ImageSource,
    reference: Reference | None,
    network: FeatureNetwork,
    measures: Sequence[str],
    moments_of: Sequence[Kind],
    save_kinds: Sequence[Kind],
    feature_cache: Path,
    processes: Processes,
    say: Progress,
) -> _Found | None:
    """The features, which all processes make, and their moments, which come together on the first; None elsewhere."""

    def features(source: ImageSource, kinds: set[Kind], what: str) -> dict[Kind, StoredFeatures]:
        def told(done: int) -> None:
            say(f"features of the {what}", done, source.count)

        told(0)
        return extract(source, network, sorted(kinds), feature_cache, processes=processes, on_done=told)

    of_samples = features(samples, {MEASURES[name].kind for name in measures}, "samples")
    statistics = None if reference is None else reference.statistics_for(network.info)
    totals: dict[Kind, Moments] = {} if statistics is None else dict(statistics.moments)
    missing: list[Kind] = [kind for kind in dict.fromkeys((*moments_of, *save_kinds)) if kind not in totals]
    wanted: set[Kind] = {*missing, *(MEASURES[name].kind for name in measures if MEASURES[name].images)}
    of_reference: dict[Kind, StoredFeatures] = {}
    if wanted and reference is not None and reference.images is not None:
        of_reference = features(reference.images, wanted, "reference")
    grouped: dict[Kind, GroupedMoments | None] = {kind: _moments(of_samples[kind], processes) for kind in moments_of}
    merged: dict[Kind, GroupedMoments | None] = {kind: _moments(of_reference[kind], processes) for kind in missing}
    if not processes.first:
        return None
    gathered: dict[Kind, GroupedMoments] = {kind: found for kind, found in grouped.items() if found is not None}
    for kind, found in merged.items():
        if found is not None:
            totals[kind] = found.total()
    return _Found(of_samples, of_reference, gathered, totals)


def _results(
    found: _Found, info: FeatureInfo, measures: Sequence[str], say: Progress
) -> tuple[list[Result], list[str]]:
    """The numbers, in the order of `measures`, and what is to be warned of."""
    results: list[Result] = []
    warnings: list[str] = []
    manifold: dict[str, Estimate] = {}
    for name in measures:
        say(MEASURES[name].text, 0, 0)
        kind = MEASURES[name].kind
        if name in ("fd", "sfd"):
            results += _frechet(name, info, found.grouped[kind], found.totals[kind], warnings)
        elif name == "is":
            score = inception_score(found.of_samples[kind].all())
            results.append(Result("is", title("is", info), score.estimate, "higher", {"std_of_parts": score.std}))
        elif name == "kd":
            distance = kernel_distance(found.of_samples[kind].all(), found.of_reference[kind].all())
            results.append(Result("kd", title("kd", info), distance, "lower", {}))
        elif name in _MANIFOLD:
            chosen = _spread(found.of_reference[kind].count, found.of_samples[kind].count)
            manifold = manifold or manifold_estimates(
                found.of_reference[kind].all()[chosen],
                found.of_samples[kind].all(),
                on_progress=lambda done, total: say("nearest neighbours", done, total),
            )
            for key in _MANIFOLD[name]:
                results.append(Result(key, key, manifold[key], "higher", {"reference_count": len(chosen)}))
    return results, warnings


def _silent(what: str, done: int, total: int) -> None:
    return None


def _has(reference: Reference | None, info: FeatureInfo, kind: Kind) -> bool:
    """Whether moments of a kind can be had of the reference."""
    if reference is None:
        return False
    if reference.images is not None:
        return True
    return reference.statistics is not None and kind in reference.statistics.moments


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
