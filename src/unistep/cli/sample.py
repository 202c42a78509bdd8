"""`unistep sample`: images with any model, from the command line.

Many images are written as they are made, to a hidden folder by the output, so that a killed run goes on where it was:
see `unistep.generation.resumable`.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unistep.cli.arguments import check_range, instantiate, new_parser, parse
from unistep.cli.output import check_output
from unistep.cli.sampling import MOST_IMAGES, SamplingConfig, make_labels, make_plan
from unistep.cli.source import add_source_options, source_options
from unistep.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unistep.formats.model import LoadedModel
    from unistep.generation.generate import Plan
    from unistep.generation.resumable import UnfinishedImages
    from unistep.runtime.interrupt import Interrupted

_DESCRIPTION = """Make images: `unistep sample [MODEL] [options]`.

MODEL is a model folder, a run directory, an OpenAI .pt, an EDM .pkl, or owner/name on the Hugging Face hub; without it
the embedded MNIST model. The same command goes on with an .npz or a folder that was broken off, wherever that was.
Image i is the same whatever the batch size and the number of processes (torchrun -m unistep sample ..., or accelerate
launch)."""

_MOST_COLUMNS = 10_000  # far beyond all use


@dataclass(frozen=True)
class SampleConfig(SamplingConfig):
    """What to make.

    Args:
        num_images: how many images.
        output: a .png grid, an .npz (arr_0 uint8 NHWC, arr_1 labels), or a folder of PNGs with a dataset.json.
        columns: of the grid.
    """

    num_images: int = 64
    output: str = "samples.png"
    columns: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("--num_images", self.num_images, 1, MOST_IMAGES)
        check_range("--columns", self.columns, 1, _MOST_COLUMNS)
        check_output(self.output)


def run(arguments: list[str]) -> None:
    """Parses, samples and writes."""
    parser = new_parser("sample", _DESCRIPTION)
    parser.add_argument("model", type=str | None, nargs="?", default=None, help="what to sample with")
    parser.add_class_arguments(SampleConfig, None)
    text = "delete the unfinished images of another command for this output"
    parser.add_argument("--restart", type=bool, default=False, help=text)
    add_source_options(parser)
    parser.usage = "unistep sample [MODEL] [options]"
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        sys.exit(0)
    parsed = parse(parser, _switched(arguments))
    model = parsed.pop("model")
    if model == "":
        raise UserError("MODEL is empty; name one, or leave it out for the embedded MNIST model")
    options, restart = source_options(parsed), parsed.pop("restart")
    _sample(model, options, instantiate(parser, parsed, SampleConfig), restart)


def _switched(arguments: Sequence[str]) -> list[str]:
    """`--restart` alone as `--restart=true`; a model may follow it."""
    return [
        f"{a}=true" if a == "--restart" and after not in ("true", "false") else a
        for a, after in pairwise([*arguments, ""])
    ]


def _sample(name: str | None, options: dict[str, Any], config: SampleConfig, restart: bool) -> None:
    from unistep.runtime.interrupt import Interrupted, signals_raise

    job = _Job(config, restart)
    try:
        with signals_raise():
            job.run(name, options)
    except Interrupted as stopped:
        job.say_stopped(stopped)
        sys.exit(128 + stopped.signal.value)
    finally:
        if job.unfinished is not None:
            job.unfinished.release()


class _Job:
    """One call of the command."""

    def __init__(self, config: SampleConfig, restart: bool) -> None:
        from unistep.runtime.processes import Processes

        self.processes = Processes()
        self.config, self.restart = config, restart
        self.output = Path(config.output)
        self.unfinished: UnfinishedImages | None = None

    def run(self, name: str | None, options: dict[str, Any]) -> None:
        """Opens the model, makes what is missing, and says where it is."""
        import torch

        from unistep.runtime.device import pick_device
        from unistep.runtime.precision import resolve_dtype
        from unistep.runtime.processes import join_processes
        from unistep.workflows.models import open_any

        config = self.config
        self.processes = join_processes()
        device = pick_device(config.device, self.processes.local_rank)
        model = open_any(name, device, **options)
        plan = make_plan(model.info, config)
        labels = make_labels(model.num_classes, config, config.num_images)
        dtype, why = resolve_dtype(config.dtype, device)
        if self.processes.first:
            notes = [*model.notes, f"dtype auto: {why}"] if config.dtype == "auto" else model.notes
            for note in notes:
                print(f"note: {note}", file=sys.stderr)
        try:
            seconds = self.make(model, plan, labels, dtype, device)
        except torch.OutOfMemoryError:
            raise UserError(
                f"--batch_size {config.batch_size}: too many for the memory of {device}; give fewer"
            ) from None
        if self.processes.first:
            each = f"{plan.nfe} evaluation{'s' * (plan.nfe > 1)} each"
            pace = "" if seconds is None else f", {seconds:.4f} s per image"
            print(f"{config.num_images} image{'s' * (config.num_images > 1)}, {each}{pace}: {self.output}")

    def make(
        self, model: "LoadedModel", plan: "Plan", labels: "Tensor | None", dtype: "torch.dtype", device: "torch.device"
    ) -> float | None:
        """Makes the images and puts the output in its place; returns seconds an image, None where none was missing."""
        from unistep.generation.collect import collect, collect_into
        from unistep.generation.write import write_images
        from unistep.runtime.precision import set_precision
        from unistep.runtime.progress import progress_bar

        config, processes, total = self.config, self.processes, self.config.num_images
        columns = min(total, config.columns or (10 if model.num_classes == 10 or total > 64 else 8))
        unfinished = self.unfinished = self.unfinished_images(model.image_shape, columns)
        done = 0
        if unfinished is not None and processes.first:
            done = unfinished.claim(self.settings(model, plan, labels, dtype), restart=self.restart)
            if done:
                print(f"going on: {done} of {total} images are there", file=sys.stderr)
        processes.wait()  # for the first to have claimed
        set_precision(model.denoiser.network, dtype)
        started = time.perf_counter()
        with progress_bar(total, done, active=processes.first) as on_done:
            how = {"seed": config.seed, "batch_size": config.batch_size, "device": device, "on_done": on_done}
            if unfinished is None:
                images = collect(model.denoiser, plan, model.image_shape, total, labels, **how)
            else:
                collect_into(unfinished, model.denoiser, plan, labels, processes=processes, **how)
        seconds = time.perf_counter() - started
        if unfinished is None:
            write_images(images, labels, self.output, columns)
        elif processes.first:
            unfinished.finish(labels)
        return seconds / (total - done) if done < total else None

    def unfinished_images(self, shape: tuple[int, int, int], columns: int) -> "UnfinishedImages | None":
        """Where the images go while they are not all there; None where memory will do."""
        from unistep.generation.png_folder import PngFolder
        from unistep.generation.shards import GridShards, Shards, shards_folder

        total, suffix = self.config.num_images, self.output.suffix.lower()
        if suffix not in (".png", ".npz"):
            return PngFolder(self.output, total, shape)
        is_small = suffix == ".png" or total <= self.config.batch_size
        if is_small and self.processes.count == 1 and not shards_folder(self.output).exists():
            return None
        return Shards(self.output, total, shape) if suffix == ".npz" else GridShards(self.output, total, shape, columns)

    def settings(
        self, model: "LoadedModel", plan: "Plan", labels: "Tensor | None", dtype: "torch.dtype"
    ) -> dict[str, Any]:
        """What the images depend on; the model is still in fp32."""
        from unistep.generation.settings import run_settings, weights_digest

        return run_settings(
            weights=weights_digest(model.denoiser),
            info=model.info,
            plan=plan,
            shape=model.image_shape,
            num_images=self.config.num_images,
            labels=labels,
            seed=self.config.seed,
            dtype=str(dtype).removeprefix("torch."),
        )

    def say_stopped(self, stopped: "Interrupted") -> None:
        """Says what is kept, and how to go on."""
        if not self.processes.first:
            return
        kept, alone = 0, self.processes.count == 1
        if self.unfinished is not None:
            with suppress(OSError):
                kept = self.unfinished.count()
                if alone and not kept and self.unfinished.claimed:
                    self.unfinished.discard()
        # Of several processes others may still be writing.
        what = f"{kept} of {self.config.num_images}" if alone else "the"
        hint = f"{what} images made so far are kept; repeat the command to go on" if kept else "nothing was written"
        print(f"{stopped}; {hint}", file=sys.stderr)
