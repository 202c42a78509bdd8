"""`unistep.sample`: images of a run, in memory or into files that outlive a kill."""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from unistep.arguments import plain_arguments
from unistep.checks import MAX_SEED, check_range
from unistep.errors import UserError
from unistep.prepared.table import RuntimeName
from unistep.samplers.table import SolverName
from unistep.workflows.models import ModelLike, ReadyModel, as_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from unistep.generation.images import Images
    from unistep.generation.plan import Plan
    from unistep.generation.resumable import ResumableWriter
    from unistep.runtime.processes import Processes

_log = logging.getLogger("unistep")

# Far beyond all use: a mistyped number should not run for a year.
MAX_IMAGES = 10_000_000
_MAX_BATCH, _MAX_COLUMNS = 100_000, 10_000


@plain_arguments(empty=["output", "class_labels"])
def sample(
    model: ModelLike = None,
    *,
    num_images: int = 64,
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
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    columns: int | None = None,
    restart: bool = False,
    batch_size: int = 64,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    runtime: RuntimeName | None = None,
    device: str | None = None,
    profile: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> "Images":
    """Makes images with a consistency model or a diffusion model.

    Image i depends on the model, the noise levels and (`seed`, i) alone: it is the same whatever the batch size and the
    number of processes (torchrun, accelerate launch). With `output` an .npz or a folder, images are written while they
    are made; the same call goes on with a run that was broken off, wherever that was.

    Args:
        model: model folder, run directory, OpenAI .pt, EDM .pkl, name of an embedded model, or owner/name on the
            Hugging Face hub; in Python also a loaded model or a pipeline; default: mnist, the embedded model of digits.
        num_images: number of images.
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
        class_labels: class of all images, or a list as 0,1,2 that is repeated; numbers, or names that the model has for
            its classes; default: drawn from the seed.
        seed: seed of the run; image i uses the random stream (seed, i).
        output: file or folder for the images: a .png grid, an .npz (arr_0 uint8 NHWC, arr_1 labels), or a folder of
            PNGs with a dataset.json; default: none is written.
        columns: columns of a .png grid; default: 10 for ten classes or more than 64 images, else 8.
        restart: delete the unfinished images that another call left for this output.
        batch_size: images a batch on an accelerator; a CPU takes few at once whatever is given.
        dtype: precision of a model given by name; default: auto, the fastest on the device; small networks stay fp32.
        runtime: runtime of a model given by name, on a CPU: eager, PyTorch itself; another one, for which the network
            is prepared once and kept (`unistep cache`); or auto, the fastest of those installed; default: eager.
        device: device of a model given by name: cpu, cuda, cuda:1 or mps; default: cuda where there is one.
        profile: file for a trace of the work, .json or .json.gz, for Chrome or Perfetto; the times by operator and by
            module are logged; default: none.
        progress: show a progress bar on a terminal.

    Returns:
        The images with their seed and classes. On processes other than the first they are in `output` alone.

    Raises:
        UserError: arguments that contradict each other or the model, a model that cannot be opened, a place that cannot
            be written to.
        NotFiniteError: (a UserError) the network gives NaN or infinite values, as fp16 can; no image is made of them.

    Example:
        >>> import unistep
        >>> images = unistep.sample(num_images=4, steps=2, class_labels=[3, 8], progress=False)
        >>> images
        Images(4 grey images of 28x28, seed=0)
        >>> images.labels.tolist(), images.evaluations
        ([3, 8, 3, 8], 2)
    """
    check_range("num_images", num_images, 1, MAX_IMAGES)
    check_range("columns", columns, 1, _MAX_COLUMNS)
    check_range("batch_size", batch_size, 1, _MAX_BATCH)
    check_range("seed", seed, 0, MAX_SEED)
    import torch

    from unistep.generation.classes import class_numbers
    from unistep.generation.labels import make_labels
    from unistep.generation.plan import make_plan
    from unistep.generation.write import check_columns, check_output
    from unistep.runtime.processes import join_processes
    from unistep.runtime.profiling import check_trace, profiled

    trace = None if profile is None else check_trace(profile)
    place = None if output is None else check_output(output)
    if columns is not None and place is not None:
        check_columns(place)
    processes = join_processes()
    ready = as_model(
        model, device=device, dtype=dtype, runtime=runtime, local_rank=processes.local_rank, progress=progress
    )
    info, num_classes = ready.model.info, ready.model.num_classes
    plan = make_plan(
        info,
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
    )
    labels = make_labels(num_classes, num_images, class_numbers(class_labels, info.class_names), seed)
    if processes.first:
        ready.log_notes()
    columns = min(num_images, columns or (10 if num_classes == 10 or num_images > 64 else 8))
    run = _Run(ready, plan, labels, num_images, seed, batch_size, columns, processes, progress)
    try:
        with profiled(trace if processes.first else None, lambda text: _log.info("profile: %s\n%s", trace, text)):
            return run.in_memory(place) if place is None or _is_small(place, run) else run.into(place, restart)
    except torch.OutOfMemoryError:
        raise UserError(
            f"{batch_size}: too many for the memory of {ready.device}; give fewer", field="batch_size"
        ) from None


def _is_small(place: "Path", run: "_Run") -> bool:
    """Whether the images may be in memory until all of them are made."""
    from unistep.generation.shards import shards_folder

    suffix = place.suffix.lower()
    if suffix not in (".png", ".npz") or run.processes.count > 1 or shards_folder(place).exists():
        return False
    return suffix == ".png" or run.num_images <= run.batch_size


class _Run:
    """One call of `sample`, with all its arguments checked and the model open."""

    def __init__(
        self,
        ready: ReadyModel,
        plan: "Plan",
        labels: "Tensor | None",
        num_images: int,
        seed: int,
        batch_size: int,
        columns: int,
        processes: "Processes",
        progress: bool,
    ) -> None:
        self.ready, self.plan, self.labels, self.num_images, self.seed = ready, plan, labels, num_images, seed
        self.batch_size, self.columns, self.processes, self.progress = batch_size, columns, processes, progress

    def in_memory(self, place: "Path | None") -> "Images":
        """Makes all images, and writes them where `place` is one."""
        from unistep.generation.collect import collect
        from unistep.generation.write import write_images
        from unistep.runtime.progress import progress_bar

        self.ready.cast()
        model, started = self.ready.model, time.perf_counter()
        with progress_bar(self.num_images, active=self.progress) as on_done:
            made = collect(
                model.denoiser,
                self.plan,
                model.image_shape,
                self.num_images,
                self.labels,
                seed=self.seed,
                batch_size=self.batch_size,
                device=self.ready.device,
                on_done=on_done,
            )
        seconds = (time.perf_counter() - started) / self.num_images
        if place is not None:
            write_images(made, self.labels, place, self.columns)
        return self.result(seconds, made, place)

    def into(self, place: "Path", restart: bool) -> "Images":
        """Makes the images that are not there yet; every process its share."""
        from unistep.core.finite import NotFiniteError
        from unistep.runtime.interrupt import Interrupted

        writer, processes = self.writer(place), self.processes
        try:
            seconds = self._fill(writer, restart)
            if processes.first:
                writer.finish(self.labels)
        except Interrupted as stopped:
            stopped.add_note(_kept(writer, processes))
            raise
        except NotFiniteError as error:
            # Of several processes others may still be writing.
            if kept := _count_kept(writer, processes):
                images = f"{kept} images made before are" if processes.count == 1 else "images made before are"
                again = f"{error.remedy}; as {images} kept, with `restart=True`"
                raise NotFiniteError(error.problem, again) from None
            raise
        finally:
            writer.release()
        return self.result(seconds, None, place)

    def writer(self, place: "Path") -> "ResumableWriter":
        """Returns what takes the images on their way to `place`."""
        from unistep.generation.png_folder import PngFolder
        from unistep.generation.shards import GridShards, Shards

        total, shape = self.num_images, self.ready.model.image_shape
        if place.suffix.lower() == ".npz":
            return Shards(place, total, shape)
        return (
            GridShards(place, total, shape, self.columns)
            if place.suffix.lower() == ".png"
            else PngFolder(place, total, shape)
        )

    def result(self, seconds: float | None, made: "Tensor | None", place: "Path | None") -> "Images":
        """Returns the images as the caller has them."""
        from unistep.generation.images import Images

        shape = self.ready.model.image_shape
        return Images(self.num_images, shape, self.seed, self.labels, self.plan.nfe, seconds, self.columns, made, place)

    def _fill(self, writer: "ResumableWriter", restart: bool) -> float | None:
        """Returns seconds an image; None where none was missing."""
        from unistep.generation.collect import collect_into
        from unistep.runtime.progress import progress_bar

        done, processes = 0, self.processes
        if processes.first:
            done = writer.claim(self._settings(), restart=restart)
            if done:
                _log.info("going on: %d of %d images are there", done, self.num_images)
        processes.wait()  # for the first to have claimed
        self.ready.cast()
        started = time.perf_counter()
        with progress_bar(self.num_images, done, active=self.progress and processes.first) as on_done:
            collect_into(
                writer,
                self.ready.model.denoiser,
                self.plan,
                self.labels,
                seed=self.seed,
                batch_size=self.batch_size,
                device=self.ready.device,
                processes=processes,
                on_done=on_done,
            )
        seconds = time.perf_counter() - started
        return seconds / (self.num_images - done) if done < self.num_images else None

    def _settings(self) -> dict[str, object]:
        """Returns all that the images depend on; the model has its own precision still."""
        from unistep.generation.settings import run_settings, weights_digest

        model = self.ready.model
        return run_settings(
            weights=weights_digest(model.denoiser),
            info=model.info,
            plan=self.plan,
            shape=model.image_shape,
            num_images=self.num_images,
            labels=self.labels,
            seed=self.seed,
            dtype=str(self.ready.dtype).removeprefix("torch."),
        )


def _kept(writer: "ResumableWriter", processes: "Processes") -> str:
    """Returns what an interrupted run leaves, and what to do; a run that has nothing leaves no trace."""
    kept = _count_kept(writer, processes)
    # Of several processes others may still be writing.
    what = f"{kept} of {writer.num_images}" if processes.count == 1 else "the"
    return f"{what} images made so far are kept; repeat the command to go on" if kept else "nothing was written"


def _count_kept(writer: "ResumableWriter", processes: "Processes") -> int:
    """Returns the number of images that are kept; where there is none, the folder is removed."""
    kept = 0
    with suppress(OSError):
        kept = writer.count()
        if processes.count == 1 and not kept and writer.claimed:
            writer.discard()
    return kept
