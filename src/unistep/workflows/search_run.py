"""Run of a search: everything opened, every number of steps searched for, and drawn."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unistep.checks import check_path, user_path
from unistep.data import ImageDataset
from unistep.editing.model import edit_model
from unistep.editing.tasks import make_task, task_named
from unistep.editing.tasks.measurement import MeasurementTask
from unistep.editing.tasks.task import EditContext
from unistep.errors import UserError
from unistep.generation.images import Images
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.metrics.features.store import default_cache
from unistep.metrics.features.table import default_features, open_features
from unistep.metrics.reference import Reference, check_alike
from unistep.runtime.progress import Progress
from unistep.searching.edit_schedules import TaskSearch, chosen_images, measurement_method, task_settings
from unistep.searching.full_reference import Resources, open_full_reference
from unistep.searching.metric import open_search_metric
from unistep.searching.plot import save_curves
from unistep.searching.record import SearchRecord, open_record
from unistep.searching.result import SearchResult
from unistep.searching.sampler_schedules import ScheduleSearch, search_settings
from unistep.searching.table import SAMPLE_METRICS
from unistep.workflows.image_sources import Preparation, open_images, pixels_of
from unistep.workflows.models import ImagesLike, ReadyModel


@dataclass(frozen=True)
class FeatureOptions:
    """Choice of the feature network, as `unistep.evaluate` takes it.

    Args:
        name: name of the network; None is the default for the images.
        path: file of its weights; None downloads them.
        resize: method that brings images to its size; None is that of the published numbers.
        cache: folder where features are kept; None is the default one.
    """

    name: str | None = None
    path: str | os.PathLike[str] | None = None
    resize: str | None = None
    cache: str | os.PathLike[str] | None = None

    def open(self, shape: tuple[int, int, int], device: torch.device | str) -> FeatureNetwork:
        """Opens the network for images of a shape (channels, height, width).

        Raises:
            UserError: it cannot be had.
        """
        return open_features(self.name or default_features(*shape), device, path=self.path, resize=self.resize)

    @property
    def folder(self) -> Path:
        """Folder where features are kept."""
        return default_cache() if self.cache is None else user_path(self.cache)


class SearchRun:
    """One call of `unistep.search`: `prepare_sampler` or `prepare_task`, then `find`.

    Args:
        ready: consistency model.
        folder: folder for search.json and curve.png; None writes nothing.
        num_images: number of images a schedule.
        seed: seed of the images.
        batch_size: number of images computed at once on an accelerator.
        features: choice of the feature network.
        on_progress: called with the progress, see `Progress`.
    """

    def __init__(
        self,
        ready: ReadyModel,
        folder: Path | None,
        num_images: int,
        seed: int,
        batch_size: int,
        features: FeatureOptions,
        on_progress: Progress,
    ) -> None:
        self.ready, self.folder, self.num_images, self.seed = ready, folder, num_images, seed
        self.batch_size, self.features, self.on_progress = batch_size, features, on_progress
        self.task: str | None = None
        self.task_options: dict[str, Any] = {}
        self.settle = 0
        self.search: ScheduleSearch | TaskSearch

    def prepare_sampler(self, reference: Reference | None, metric: str) -> None:
        """Opens what the search for timesteps needs, cheap things first, and extracts the reference's features.

        Args:
            reference: reference of the metric; None where it needs none.
            metric: name in `SAMPLE_METRICS`.

        Raises:
            UserError: the metric needs what is not there, or the record is of another search.
        """
        model, device = self.ready.model, self.ready.device
        check_alike(str(model.path), model.image_shape, reference)
        network = self.features.open(model.image_shape, device)
        row = SAMPLE_METRICS[metric]

        def report(done: int, total: int) -> None:
            self.on_progress("features of the reference", done, total)

        opened = open_search_metric(row, network, reference, self.features.folder, report)
        settings = search_settings(model, opened, num_images=self.num_images, seed=self.seed, dtype=self.ready.dtype)
        record = self._record(settings)
        self.ready.cast()
        self.search = ScheduleSearch(
            model,
            network,
            opened,
            record,
            num_images=self.num_images,
            seed=self.seed,
            batch_size=self.batch_size,
            device=device,
            on_progress=self.on_progress,
        )

    def prepare_task(
        self,
        task: str,
        options: Mapping[str, Any],
        settle: int | None,
        images: ImagesLike,
        metric: str,
        *,
        lpips_vgg: str | os.PathLike[str] | None = None,
        lpips_heads: str | os.PathLike[str] | None = None,
    ) -> None:
        """Opens what the search for an edit's levels needs, cheap things first.

        Args:
            task: name of the task.
            options: options of its measurements.
            settle: number of evaluations without noise at the end; None is the task's own.
            images: whole images.
            metric: name in `FULL_REFERENCE_METRICS`.
            lpips_vgg, lpips_heads: files of LPIPS' weights; None downloads them.

        Raises:
            UserError: an option does not fit the model, the images or weights cannot be had, or the record is of
                another search.
        """
        model, device = self.ready.model, self.ready.device
        row, made = task_named(task), make_task(task, options)
        assert isinstance(made, MeasurementTask)
        operator = made.operator_of_any(EditContext(edit_model(model), seed=self.seed))
        count = row.default.settle if settle is None else settle
        pixels, name = _whole_images(images, model.image_shape)
        chosen = chosen_images(pixels, self.num_images, name)
        resources = Resources(
            device,
            lambda: self.features.open(model.image_shape, device),
            None if lpips_vgg is None else os.fspath(lpips_vgg),
            None if lpips_heads is None else os.fspath(lpips_heads),
        )
        opened = open_full_reference(metric, resources)
        measured = {name: value for name, value in options.items() if isinstance(value, str | int | float)}
        measured |= {name: os.fspath(value) for name, value in options.items() if isinstance(value, os.PathLike)}
        measured |= {name: list(value) for name, value in options.items() if isinstance(value, list | tuple)}
        measured |= {"operator": operator.name}
        mask = getattr(operator, "mask", None)
        if isinstance(mask, Tensor):
            measured["mask's pixels"] = hashlib.sha256(mask.contiguous().numpy().data).hexdigest()
        measured["settle"] = count
        settings = task_settings(model, task, measured, chosen, opened, seed=self.seed, dtype=self.ready.dtype)
        record = self._record(settings)
        self.ready.cast()
        self.task, self.task_options, self.settle = task, dict(options), count
        self.search = TaskSearch(
            model,
            row.default,
            measurement_method(operator, model, count),
            chosen,
            opened,
            record,
            seed=self.seed,
            batch_size=self.batch_size,
            on_progress=self.on_progress,
        )

    def find(self, numbers: Sequence[int]) -> SearchResult:
        """Searches for every number of steps, and draws after each what is found so far.

        Args:
            numbers: numbers of steps, rising.

        Raises:
            UserError: there are fewer levels, or a file cannot be written.
        """
        result = self._result()
        for steps in numbers:
            self.search.find(steps)
            result = self._result()
            if self.folder is not None:
                save_curves(self.folder / "curve.png", result.found, result.info, result.title, result.metric)
        return result

    def _result(self) -> SearchResult:
        search = self.search
        return SearchResult(
            tuple(search.found),
            str(self.ready.model.path),
            search.metric.title,
            search.metric.better,
            self.num_images,
            search.info,
            search.record,
            self.task,
            self.task_options,
            self.settle,
            () if self.folder is None else (self.folder / "search.json", self.folder / "curve.png"),
        )

    def _record(self, settings: dict[str, Any]) -> SearchRecord:
        return open_record(None if self.folder is None else self.folder / "search.json", settings)


def _whole_images(images: ImagesLike, shape: tuple[int, int, int]) -> tuple[Tensor, str]:
    """The pixels of whole images at the model's size, and their name."""
    channels, side, _ = shape
    if not isinstance(images, ImageDataset | Images | Tensor):
        check_path("images", images, "give mnist-test, a folder, a .zip, an .npz, or uint8 images [N, C, H, W]")
        name = os.fspath(images)
        try:
            return open_images(name, Preparation(side, channels)).pixels[:], name
        except UserError as error:
            raise UserError(f"`images` {name}: {error}") from None
    pixels = pixels_of(images)
    if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != shape:
        found = f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
        raise UserError(f"`images` are {found}; give uint8 [N, {', '.join(map(str, shape))}], or files")
    return pixels, "images"
