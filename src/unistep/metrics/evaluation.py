"""Evaluation of samples against a reference: features once, then every metric that is asked for.

    source -> features (kept on the disk, shared by processes) -> moments (merged) and vectors -> results with errors

Metrics that need moments alone are computed in one pass over the features, in memory that does not depend on how many
there are; the others need all features at once. Those that need the vectors of the reference need its images; files of
statistics hold moments.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from unistep.errors import UserError
from unistep.generation.collect import share
from unistep.metrics.features.extract import extract
from unistep.metrics.features.info import KINDS, FeatureInfo, Kind
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.metrics.features.store import StoredFeatures
from unistep.metrics.measurement import Features, Inputs, Measurement
from unistep.metrics.metric import Metric, function_at
from unistep.metrics.moments import GroupedMoments, Moments
from unistep.metrics.reference import Reference, check_alike, check_reference
from unistep.metrics.report import Report, Result
from unistep.metrics.sources import ImageSource
from unistep.metrics.table import METRICS
from unistep.runtime.processes import Processes
from unistep.runtime.progress import Progress


def possible_metrics(reference: Reference | None, info: FeatureInfo) -> list[Metric]:
    """Returns the default metrics that the network and the reference allow.

    Raises:
        UserError: the reference holds statistics alone, of another network.
    """
    allowed = [m for m in METRICS.values() if m.default and m.kind in info.dims]
    if reference is None:
        return [m for m in allowed if m.needs == "nothing"]
    return [m for m in allowed if reference.provides(m, info)]


def evaluate_images(
    samples: ImageSource,
    reference: Reference | None,
    network: FeatureNetwork,
    metrics: Sequence[Metric],
    *,
    feature_cache: Path,
    processes: Processes | None = None,
    on_progress: Progress | None = None,
    save_kinds: Sequence[Kind] = (),
) -> Report:
    """Computes metrics of samples.

    Args:
        samples: images to evaluate.
        reference: reference to compare with; None where no metric needs one.
        network: feature network.
        metrics: metrics of features that the network has.
        feature_cache: folder of features that are kept.
        processes: processes that share the work, all of which call this function; None is this one alone.
        on_progress: called with the progress, see `Progress`; on the first process alone.
        save_kinds: kinds of features whose moments of the reference are wanted in the report.

    Returns:
        The report; on processes other than the first without pictures and moments.

    Raises:
        UserError: a metric needs what is not there, the reference is of another network, or there are too few images.
    """
    processes = processes or Processes()
    _check(samples, reference, network.info, metrics, save_kinds)
    progress = on_progress if on_progress is not None and processes.first else _silent

    def extracted(source: ImageSource, kinds: Iterable[Kind], what: str) -> dict[Kind, StoredFeatures]:
        report_done = partial(_report_done, progress, f"features of the {what}", source.count)
        report_done(0)
        return extract(source, network, sorted(set(kinds)), feature_cache, processes=processes, on_done=report_done)

    of_samples = extracted(samples, (m.kind for m in metrics), "samples")
    in_groups: list[Kind] = list(dict.fromkeys(m.kind for m in metrics if m.needs == "moments"))
    statistics = None if reference is None else reference.statistics_for(network.info)
    known: dict[Kind, Moments] = {} if statistics is None else dict(statistics.moments)
    missing: list[Kind] = [kind for kind in dict.fromkeys((*in_groups, *save_kinds)) if kind not in known]
    wanted: list[Kind] = [*missing, *(m.kind for m in metrics if m.needs == "vectors")]
    of_reference: dict[Kind, StoredFeatures] = {}
    if wanted and reference is not None and reference.images is not None:
        of_reference = extracted(reference.images, wanted, "reference")
    # All processes take part in these.
    grouped: dict[Kind, GroupedMoments | None] = {kind: _moments(of_samples[kind], processes) for kind in in_groups}
    merged: dict[Kind, GroupedMoments | None] = {kind: _moments(of_reference[kind], processes) for kind in missing}
    report: Report | None = None
    if processes.first:
        for kind in missing:
            found = merged[kind]
            if found is not None:
                known[kind] = found.total()
        ours: dict[Kind, Features] = {}
        theirs: dict[Kind, Features] = {}
        for kind in KINDS:
            if kind in of_samples:
                ours[kind] = Features(of_samples[kind], grouped=grouped.get(kind))
            if kind in of_reference or kind in known:
                theirs[kind] = Features(of_reference.get(kind), moments=known.get(kind))
        measured = _measured(metrics, network.info, ours, theirs, progress, samples.labels)
        report = _report(samples, reference, network.info, measured)
        report = replace(report, reference_moments=known)
    if processes.count > 1:
        shared = processes.broadcast(report and replace(report, pictures={}, reference_moments={}))
        report = report or shared
    assert report is not None
    return report


def _measured(
    metrics: Sequence[Metric],
    info: FeatureInfo,
    samples: dict[Kind, Features],
    reference: dict[Kind, Features],
    progress: Progress,
    labels: Tensor | None,
) -> list[tuple[Metric, Measurement]]:
    """The outcome of every metric, in order."""
    caches: dict[Kind, dict[Any, Any]] = {}
    found = []
    for metric in metrics:
        progress(metric.text, 0, 0)
        inputs = Inputs(
            metric.title_with(info),
            samples[metric.kind],
            reference.get(metric.kind, Features()),
            [m.name for m in metrics if m.kind == metric.kind],
            progress,
            caches.setdefault(metric.kind, {}),
            labels,
        )
        found.append((metric, function_at(metric.compute)(inputs)))
    return found


def _report(
    samples: ImageSource,
    reference: Reference | None,
    info: FeatureInfo,
    found: Sequence[tuple[Metric, Measurement]],
) -> Report:
    results: list[Result] = []
    warnings: list[str] = []
    pictures: dict[str, Callable[[Path], object]] = {}
    images = None if reference is None else reference.images
    for metric, measured in found:
        results.append(Result(metric.name, metric.title_with(info), measured.estimate, metric.better, measured.notes))
        for more in measured.more:
            results.append(Result(f"{metric.name}_{more.suffix}", more.title, more.estimate, metric.better))
        warnings += measured.warnings
        if images is not None:
            pictures |= {
                ending: partial(draw, samples=samples, images=images) for ending, draw in measured.pictures.items()
            }
    about = None if reference is None else reference.to_dict()
    return Report(tuple(results), samples.to_dict(), about, info, tuple(warnings), pictures)


def _silent(what: str, done: int, total: int) -> None:
    return None


def _report_done(progress: Progress, what: str, total: int, done: int) -> None:
    progress(what, done, total)


def _check(
    samples: ImageSource,
    reference: Reference | None,
    info: FeatureInfo,
    metrics: Sequence[Metric],
    save_kinds: Sequence[Kind],
) -> None:
    """Refuses what cannot be computed, before anything is."""
    for metric in metrics:
        if metric.classes:
            _check_classes(samples, info, metric)
    if reference is None:
        if needing := [m.name for m in metrics if m.needs != "nothing"]:
            raise UserError(f"{', '.join(needing)} need a `reference`; give a dataset or statistics")
        return
    check_alike(samples.name, samples.shape, reference)
    statistics = reference.statistics_for(info)
    for metric in metrics:
        check_reference(reference, metric, info)
    for kind in save_kinds:
        if reference.images is None and (statistics is None or kind not in statistics.moments):
            raise UserError(f"{reference.name} has no {kind} statistics to save; give its images")


def _check_classes(samples: ImageSource, info: FeatureInfo, metric: Metric) -> None:
    count = info.dims.get("probabilities", 0)
    if not info.classifies:
        raise UserError(
            f"{metric.name} needs a classifier of the samples' classes, which {info.name} is not; "
            "give `features` mnist, cifar10 or onnx:FILE"
        )
    if samples.labels is None:
        raise UserError(
            f"{metric.name} needs the class of each sample, and {samples.name} has none; "
            "give a class-conditional model, or images with labels"
        )
    if (most := int(samples.labels.max())) >= count:
        raise UserError(
            f"{samples.name} has a class {most}, and those of {info.name} are 0 to {count - 1}; give `features` that "
            "tell its classes apart"
        )


def _moments(entry: StoredFeatures, processes: Processes) -> GroupedMoments | None:
    """The moments of all features, each process's share merged; on the first process, None on others."""
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
