"""`unistep.evaluate`: metrics of images, or of the images of a model, against a reference."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from unistep.arguments import plain_arguments
from unistep.checks import MAX_SEED, check_choice, check_file, check_range, user_path
from unistep.errors import UserError
from unistep.prepared.table import RuntimeName
from unistep.samplers.table import SolverName
from unistep.workflows.models import ImagesLike, ModelLike

if TYPE_CHECKING:
    from unistep.metrics.report import Report

_log = logging.getLogger("unistep")

_NUM_IMAGES = 10_000  # of a model
_MAX_IMAGES = 10_000_000
_MAX_BATCH = 100_000


@plain_arguments(empty=["output", "save_reference", "class_labels"])
def evaluate(
    samples: ImagesLike | ModelLike = None,
    *,
    reference: ImagesLike | None = None,
    metrics: Sequence[str] | None = None,
    features: str | None = None,
    features_path: str | os.PathLike[str] | None = None,
    resize: Literal["legacy-tensorflow", "clean"] | None = None,
    resolution: int | None = None,
    channels: Literal[1, 3] | None = None,
    feature_cache: str | os.PathLike[str] | None = None,
    skip_bad: bool = False,
    num_images: int | None = None,
    steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    solver: SolverName | None = None,
    clip: bool | None = None,
    rho: float | None = None,
    s_churn: float | None = None,
    s_min: float | None = None,
    s_max: float | None = None,
    s_noise: float | None = None,
    gamma: float | None = None,
    guidance: float | None = None,
    class_labels: int | str | Sequence[int] | Sequence[int | str] | None = None,
    seed: int | None = None,
    batch_size: int = 64,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    runtime: RuntimeName | None = None,
    device: str | None = None,
    output: str | os.PathLike[str] | None = None,
    save_reference: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> "Report":
    """Evaluates images, or a model by its images, against a reference.

    Every number comes with its 95% interval. The images of a model are made on the fly and not stored. Features are
    kept on the disk: the same call, interrupted or repeated, goes on where it was, also with more images or metrics,
    and on several processes (torchrun).

    Args:
        samples: images (a folder, a .zip, an .npz or a bundled dataset), or a model (folder, run, file, embedded one as
            mnist-student, or hub name); in Python also a tensor, images of `unistep.sample`, a loaded model or a
            pipeline; default: mnist-student, the embedded model of digits.
        reference: images to compare with (a folder, a .zip, an .npz, or a bundled dataset), or an .npz of statistics:
            OpenAI's, EDM's, pytorch-fid's or one of `save_reference`; default: none, for metrics without a reference.
        metrics: names of metrics or of their groups, as fd,kd,pr; default: all that the network and the reference
            allow, but agreement and copies.
        features: name of the feature network, as inception or onnx:FILE; default: mnist for grey images of 28 or 32
            pixels, else inception.
        features_path: file of the network's weights; default: they are downloaded once.
        resize: method that brings images to the size of the network's input; default: that of the published numbers.
        resolution: side in pixels to which images of files are cropped and resized, those of the reference too;
            default: their own.
        channels: number of channels to which images of files are converted, 1 (grey) or 3 (colour); default: their own.
        feature_cache: folder where features are kept; default: ~/.cache/unistep/features.
        skip_bad: leave out files that cannot be read as images, instead of stopping at the first.
        num_images: number of images; default: 10000 of a model, else all.
        steps: network evaluations of a consistency model (default 1), solver steps of a diffusion model (default: the
            number that it was distilled for, else 18).
        timesteps: indices of a consistency model's noise grid, from 0 (sigma_max) up, as 0,22; instead of `steps`.
        sigmas: noise levels of a consistency model, from sigma_max down, as 80,0.8; instead of `steps`.
        solver: ODE solver of a diffusion model; default: the model's own, else heun.
        clip: clamp the outputs of the model to [-1, 1] in every step; default: the way of the code that the model is
            of: NVIDIA's EDM does not, all others do.
        rho: exponent of a diffusion model's noise grid; default: the model's own, mostly 7.
        s_churn: total churn of the solvers heun and dpm2, noise added before their steps; default: 0, none.
        s_min: lowest noise level with churn; default: 0.
        s_max: highest noise level with churn; default: no limit.
        s_noise: standard deviation of the noise of the churn; default: 1.
        gamma: share of fresh noise between the jumps of a flow map, from 0 (none) to 1 (all, as of a consistency
            model); default: the model's own.
        guidance: scale of guidance from 1 (none) up, of a flow map that has an input for it, or of a diffusion model
            that has a null class, which takes two evaluations in place of one; default: the model's own, or 1.
        class_labels: class of all images of a model, or a list as 0,1,2 that is repeated; numbers, or names that the
            model has for its classes; default: drawn from the seed.
        seed: seed of a model's images; image i uses the random stream (seed, i); default: 0.
        batch_size: images a batch on an accelerator; a CPU takes few at once whatever is given.
        dtype: precision of a model given by name; default: auto, the fastest on the device; small networks stay fp32.
        runtime: runtime of a model given by name, on a CPU: eager, PyTorch itself; another one, for which the network
            is prepared once and kept (`unistep cache`); or auto, the fastest of those installed; default: eager.
        device: device of the feature network and of a model given by name: cpu, cuda, cuda:1 or mps; default: cuda
            where there is one.
        output: file for the report, which ends in .json; default: none is written.
        save_reference: .npz for the statistics of the reference, which then stands for it; default: none is written.
        progress: show progress bars on a terminal.

    Returns:
        The report, a mapping from names to numbers with their errors.

    Raises:
        UserError: arguments that contradict each other or the images, images or a model that cannot be opened, a metric
            that needs what is not there, a place that cannot be written to.

    Example:
        >>> import unistep
        >>> report = unistep.evaluate(num_images=100, reference="mnist-test", metrics=["kd"], progress=False)
        >>> report["kd"].title, report["kd"].better, 0 < report["kd"].value < 5
        ('KD-MNIST', 'lower', True)
    """
    check_range("num_images", num_images, 2, _MAX_IMAGES)
    check_range("batch_size", batch_size, 1, _MAX_BATCH)
    check_range("seed", seed, 0, MAX_SEED)
    check_choice("resize", resize, ("legacy-tensorflow", "clean"))
    check_file("output", output, (".json",))
    check_file("save_reference", save_reference, (".npz",))
    from pathlib import Path

    import torch

    from unistep.metrics.evaluation import evaluate_images, possible_metrics
    from unistep.metrics.features.store import default_cache
    from unistep.metrics.features.table import default_features, open_features
    from unistep.metrics.reference import check_alike
    from unistep.metrics.statistics import write_statistics
    from unistep.metrics.table import choose_metrics, need_classes
    from unistep.runtime.interrupt import Interrupted
    from unistep.runtime.processes import join_processes
    from unistep.runtime.progress import work_bar
    from unistep.workflows.image_sources import Preparation, Sampling, check_used, open_reference, open_samples

    processes = join_processes()
    preparation = Preparation(resolution, channels, skip_bad)
    held = None if reference is None else open_reference(reference, preparation)
    if save_reference is not None and (held is None or held.statistics is not None):
        raise UserError("`save_reference` needs a `reference` of images; statistics are there already")
    count = num_images or _NUM_IMAGES
    sampling = Sampling(
        count,
        steps=steps,
        timesteps=timesteps,
        sigmas=sigmas,
        solver=solver,
        clip=clip,
        rho=rho,
        s_churn=s_churn,
        s_min=s_min,
        s_max=s_max,
        s_noise=s_noise,
        gamma=gamma,
        guidance=guidance,
        class_labels=class_labels,
        seed=seed,
        batch_size=batch_size,
        dtype=dtype,
        runtime=runtime,
        device=device,
    )
    use_labels = need_classes(metrics or ())
    source, place = open_samples(samples, preparation, num_images, sampling, processes, use_labels=use_labels)
    check_used(preparation, (samples, source), (reference, None if held is None else held.images))
    check_alike(source.name, source.shape, held)  # before a network is fetched
    if metrics is None and held is None:
        raise UserError("`reference` is missing; give a dataset or statistics to compare with, as mnist")
    network = open_features(features or default_features(*source.shape), place, path=features_path, resize=resize)
    info = network.info
    chosen = possible_metrics(held, info) if metrics is None else choose_metrics(metrics, info)
    try:
        with work_bar(progress and processes.first) as on_progress:
            report = evaluate_images(
                source,
                held,
                network,
                chosen,
                feature_cache=default_cache() if feature_cache is None else user_path(feature_cache),
                processes=processes,
                on_progress=on_progress,
                save_kinds=[k for k in ("pool", "spatial") if save_reference is not None and k in info.dims],
            )
    except Interrupted as stopped:
        stopped.add_note("features made so far are kept; repeat the command to go on")
        raise
    except torch.OutOfMemoryError:
        raise UserError(f"{batch_size}: too many for the memory of {place}; give fewer", field="batch_size") from None
    if processes.first:
        if save_reference is not None and held is not None:
            write_statistics(Path(save_reference), report.reference_moments, info, held.to_dict())
        for warning in report.warnings:
            _log.warning("%s", warning)
        if output is not None:
            report = replace(report, files=tuple(report.save(output)))
    return report
