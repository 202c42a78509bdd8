"""`unistep.ema`: the model of a run with another average of its weights, made after training."""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unistep.arguments import plain_arguments
from unistep.checks import MAX_SEED, check_file, check_range, user_path
from unistep.config import read_run, run_config
from unistep.errors import UserError
from unistep.text import html_table
from unistep.training.config import LONGEST, SHORTEST
from unistep.workflows.convert import check_target, format_of_target
from unistep.workflows.models import ImagesLike

if TYPE_CHECKING:
    from unistep.workflows.averaging import StageAverages

_log = logging.getLogger("unistep")
_UNSURE, _WRONG = 0.05, 0.3  # of the difference of profiles: a warning, and a refusal


@dataclass(frozen=True)
class AverageQuality:
    """An average that was measured.

    Args:
        length: relative length of the average.
        error: difference between its profile and the one asked for, as a share of the latter.
        distance: Frechet distance of its images; None where it was not measured.
        interval: 95% interval of the distance.
    """

    length: float
    error: float
    distance: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, repr=False)
class AveragedModel:
    """A model whose weights were averaged after training.

    Args:
        path: folder that was written.
        run: run that it is of.
        stage: stage of the run.
        step: steps that are averaged.
        length: relative length of the average: the standard deviation of its profile as a share of the training.
        tried: lengths that were asked for, with the distances of those that were measured.
        title: title of the distance; empty where none was measured.
        plot: picture of the distances; None where none was drawn.
    """

    path: Path
    run: Path
    stage: str
    step: int
    length: float
    tried: tuple[AverageQuality, ...]
    title: str = ""
    plot: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        plot = None if self.plot is None else str(self.plot)
        return asdict(self) | {"path": str(self.path), "run": str(self.run), "plot": plot}

    def rows(self) -> list[tuple[str, str]]:
        """Returns the folder, and a row for each length that was tried."""
        rows = [(str(self.path), f"length {self.length:g} of {self.stage} at step {self.step:,}")]
        for one in self.tried:
            text = f"profile within {one.error:.1%}"
            if one.distance is not None and one.interval is not None:
                text = f"{self.title} {one.distance:.3f} ± {(one.interval[1] - one.interval[0]) / 2:.3f}, {text}"
            rows.append((f"length {one.length:g}", text))
        return rows

    def __repr__(self) -> str:
        return f"AveragedModel({self.path}: length {self.length:g} of {self.stage} at step {self.step})"

    def _repr_html_(self) -> str:
        return html_table("averaged", self.rows())


@plain_arguments(empty=["out"])
def ema(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    length: float | Sequence[float] = 0.1,
    stage: str | None = None,
    step: int | None = None,
    reference: ImagesLike | None = None,
    features: str | None = None,
    num_images: int = 10_000,
    steps: int | None = None,
    seed: int = 0,
    plot: str | os.PathLike[str] | None = None,
    device: str | None = None,
    progress: bool = True,
) -> AveragedModel:
    """Averages the weights of a run again, after training, with an average of any length.

    The best length is not known before, and depends on the learning rate, the method and the steps. A run with
    `ema_lengths` keeps snapshots of two averages, from which those of other lengths are made, as in arXiv 2312.02696.
    Of several lengths, the model with the smallest Frechet distance is written.

    Args:
        run: run directory.
        out: folder for the model; a model of that name is replaced.
        length: relative length of the average, the standard deviation of the weighting as a share of the training;
            several as 0.02,0.05,0.1, which are compared by their images, take `reference`.
        stage: stage of the run; default: the last one that has snapshots.
        step: number of steps that are averaged; default: those of the last snapshot.
        reference: images that those of several lengths are compared with, as in `unistep.evaluate`; default: none, for
            one length.
        features: name of the feature network of the distances, as in `unistep.evaluate`; default: mnist for grey
            images of 28 or 32 pixels, else inception.
        num_images: number of images of each length.
        steps: network evaluations of an image, or solver steps of a diffusion model; default: 1, and 18.
        seed: seed of the images.
        plot: file for a picture of the distances over the lengths, which ends in .png; default: none is drawn.
        device: device that the images are made on; default: cuda where there is one.
        progress: show progress bars on a terminal.

    Returns:
        The model's place, and the lengths with their distances.

    Raises:
        UserError: the run has no snapshots, or not for this length or step; several lengths without a reference; a file
            is damaged, or cannot be written.

    Example:
        >>> import tempfile, unistep
        >>> tiny = {"block_out_channels": [8, 8], "attention_head_dim": 8}
        >>> kept = {"steps": 8, "batch_size": 2, "ema_lengths": [0.1, 0.2], "snapshot_every": 2}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = unistep.train(
        ...         "mnist-quick", output=f"{folder}/run", network=tiny, student=kept, progress=False,
        ...         teacher={"steps": 2, "batch_size": 2},
        ...     )
        ...     averaged = unistep.ema(run.folder, f"{folder}/model", length=0.15)
        ...     averaged.stage, averaged.step, averaged.length
        ('student', 8, 0.15)
    """
    lengths = tuple(dict.fromkeys(map(float, [length] if isinstance(length, int | float) else length)))
    _check(lengths, reference, run)
    check_range("step", step, 1, 10**9)
    check_range("steps", steps, 1, 10_000)
    check_range("num_images", num_images, 2, 10_000_000)
    check_range("seed", seed, 0, MAX_SEED)
    check_file("plot", plot, (".png",))
    picture = None if plot is None else user_path(plot)
    if picture is not None and len(lengths) == 1:
        raise UserError("is for several lengths", "give `length` as 0.02,0.05,0.1, or leave it out", field="plot")
    row, target = format_of_target(os.fspath(out)), user_path(out)
    check_target(os.fspath(run), target, row)
    folder = user_path(run)
    names = [own.name for own in run_config(read_run(folder), str(folder / "config.yaml")).stages]
    if stage is not None and stage not in names:
        raise UserError(f"{stage}: {folder} has the stages {', '.join(names)}", field="stage")
    if picture is not None:
        from unistep.searching.plot import check_matplotlib

        check_matplotlib()

    from unistep.workflows.averaging import stage_averages

    found = stage_averages(folder, [stage] if stage else names[::-1], step)
    tried = []
    for one in lengths:
        error = found.error(one)
        _check_error(one, error, folder)
        tried.append(AverageQuality(one, error))
    title = ""
    if reference is not None:
        more = {"features": features, "num_images": num_images, "steps": steps, "seed": seed, "progress": progress}
        tried, title = _measured(found, tried, reference, device, more)
    best = min(tried, key=lambda one: 0.0 if one.distance is None else one.distance)
    model = found.model(best.length)
    origin = f"average of length {best.length:g} over {found.time:,} steps of the run {folder.name}"
    row.saver()(target, model, dtype=model.dtype, origin=origin)
    if picture is not None:
        from unistep.workflows.averaging import save_sweep

        measured = {one.length: (one.distance, *one.interval) for one in tried if one.distance and one.interval}
        save_sweep(picture, measured, title, f"{folder.name}, {found.stage}")
    return AveragedModel(target, folder, found.stage, found.step, best.length, tuple(tried), title, picture)


def _check(lengths: Sequence[float], reference: ImagesLike | None, run: str | os.PathLike[str]) -> None:
    if not os.fspath(run).strip():
        raise UserError("is empty; give a path", field="run")
    if not lengths:
        raise UserError("is empty", "give a number, as 0.1", field="length")
    for one in lengths:
        check_range("length", one, SHORTEST, LONGEST)
    if len(lengths) > 1 and reference is None:
        raise UserError("several lengths are compared by their images", "give a `reference`", field="length")


def _check_error(length: float, error: float, folder: Path) -> None:
    """Refuses a length that the snapshots cannot show, and warns of one that they show roughly."""
    text = f"`length` {length:g}: the snapshots of {folder} give an average whose profile differs by {error:.0%}"
    if error > _WRONG:
        raise UserError(text, "choose a longer one, or train with a smaller `snapshot_every`")
    if error > _UNSURE:
        _log.warning("%s from the one asked for", text)


def _measured(
    found: "StageAverages",
    tried: Sequence[AverageQuality],
    reference: ImagesLike,
    device: str | None,
    options: dict[str, Any],
) -> tuple[list[AverageQuality], str]:
    """The same with their distances, and the title of these."""
    from unistep.runtime.device import pick_device
    from unistep.workflows.evaluate import evaluate

    measured, title = [], ""
    for one in tried:
        model = found.model(one.length)
        model.denoiser.to(pick_device(device))
        result = evaluate(model, reference=reference, metrics=["fd"], **options)["fd"]
        title = result.title
        measured.append(AverageQuality(one.length, one.error, result.value, result.interval))
        _log.info("length %g: %s %.3f", one.length, title, result.value)
    return measured, title
