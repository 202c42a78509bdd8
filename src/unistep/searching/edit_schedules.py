"""Search for the noise levels of an edit: candidates are scored by comparing the results with the true images.

Whole images are measured (blurred, masked, and so on), edited from their measurements, and compared with themselves.
Other than a sampler an edit need not begin with pure noise, so its first level is searched like the others
(`unistep.searching.golden_section`), on a Karras grid of 40 levels to which the task's own levels are added. The
schedule that was found is compared with these (see `unistep.searching.scores`). Denoising and JPEG begin at the noise
of each input, and are not searched.

The residual of the measurements is reported and not optimised: at low noise a model returns its input, and everything
fits.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from unistep.core.denoiser import device_of
from unistep.core.noise import karras_sigmas
from unistep.core.pixels import to_float
from unistep.editing.levels import DefaultLevels
from unistep.editing.methods.measurement import MeasurementEdit
from unistep.editing.methods.protocol import Method
from unistep.editing.methods.settle import settle_levels
from unistep.editing.model import edit_model
from unistep.editing.operators.operator import Operator
from unistep.editing.run import make
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo
from unistep.generation.settings import weights_digest
from unistep.runtime.progress import Progress
from unistep.searching.cached_denoiser import CachedDenoiser
from unistep.searching.full_reference import FullReferenceMetric
from unistep.searching.golden_section import search_timesteps
from unistep.searching.record import Schedule, SearchRecord
from unistep.searching.scores import USUAL, Found, Scores, listed
from unistep.text import version_of

_LEVELS = 40
_LOWEST = 0.002
_SWEEPS = 3
_CHUNK = 256  # images that are edited at once

MethodOf = Callable[[UInt8[Tensor, "N C H W"], Sequence[float]], Method]
"""Function from whole images and noise levels to the method that edits them."""


def measurement_method(operator: Operator, model: LoadedModel, settle: int = 0) -> MethodOf:
    """Returns the function that edits from an operator's measurements.

    Args:
        operator: operator that measures the images.
        model: model that edits.
        settle: number of evaluations without noise at the end.
    """
    settle_sigmas = settle_levels(settle, most=model.info.sigma_max, rho=model.info.rho)
    device, sigma_min = device_of(model.denoiser), model.info.sigma_min

    def method(images: Tensor, levels: Sequence[float]) -> Method:
        y = [operator.A(x) for x in to_float(images).to(device).split(1)]
        return MeasurementEdit([operator] * len(y), y, levels, sigma_min, settle_sigmas=settle_sigmas)

    return method


def chosen_images(images: UInt8[Tensor, "N C H W"], count: int, name: str) -> UInt8[Tensor, "M C H W"]:
    """Returns the images of a search, then as many fresh ones.

    Both are spread over the dataset, for many are sorted by class.

    Args:
        images: images of the dataset.
        count: number of images a candidate.
        name: name of the dataset in messages.

    Raises:
        UserError: there are too few.
    """
    if len(images) < 2 * count:
        raise UserError(
            f"`num_images` {count}: as many fresh images judge the result, and {name} has {len(images)}; "
            f"give at most {len(images) // 2}"
        )
    places = torch.arange(2 * count) * len(images) // (2 * count)
    return torch.cat([images[places[0::2]], images[places[1::2]]])


def task_settings(
    model: LoadedModel,
    task: str,
    measured: dict[str, Any],
    images: UInt8[Tensor, "N C H W"],
    metric: FullReferenceMetric,
    *,
    seed: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Returns everything that the numbers of a search depend on, for `SearchRecord`.

    Args:
        model: model in fp32.
        task: name of the task.
        measured: options of the measurements; JSON.
        images: images of the search, and fresh ones.
        metric: metric that is optimised.
        seed: seed of the noise.
        dtype: precision that the network computes in.
    """
    info = model.info.settings()
    for name in ("timesteps", "schedules"):  # of no meaning to an edit
        del info[name]
    return {
        "metric": metric.title,
        "number of images": len(images) // 2,
        "seed": seed,
        "task": task,
        "measurement": measured,
        "dtype": str(dtype).removeprefix("torch."),
        "images": hashlib.sha256(images.contiguous().numpy().data).hexdigest(),
        "model's weights": weights_digest(model.denoiser),
        "model's noise range and scaling": info,
        "features": metric.digest,
        "unistep": version_of(),
    }


class TaskSearch:
    """Finds noise levels of one task for one model.

    Args:
        model: consistency model in the precision that it is to compute in.
        default: default noise levels of the task.
        method_of: function that returns the method of the edit, see `measurement_method`.
        images: images of the search, and as many fresh ones, see `chosen_images`.
        metric: metric that is optimised.
        record: numbers that were computed before; kept up to date.
        seed: seed of the noise.
        batch_size: number of images computed at once on an accelerator.
        on_progress: called with the progress, see `Progress`.

    Raises:
        UserError: the model is no consistency model.
    """

    def __init__(
        self,
        model: LoadedModel,
        default: DefaultLevels,
        method_of: MethodOf,
        images: UInt8[Tensor, "N C H W"],
        metric: FullReferenceMetric,
        record: SearchRecord,
        *,
        seed: int = 0,
        batch_size: int = 64,
        on_progress: Progress | None = None,
    ) -> None:
        own = edit_model(model)
        # No level is one at which all schedules begin.
        cached = CachedDenoiser(own.denoiser, float("inf"))
        self.model, self.info, self.default = dataclasses.replace(own, denoiser=cached), model.info, default
        self.method_of, self.images, self.metric, self.record = method_of, images, metric, record
        self.num_images, self.seed, self.batch_size = len(images) // 2, seed, batch_size
        self.on_progress = on_progress
        self.scores = Scores(metric, record, self._features)
        self.found: list[Found] = []

    def find(self, steps: int) -> Found:
        """Finds the noise levels of an edit; those found before for fewer steps are where it starts as well.

        Args:
            steps: number of noise levels.

        Raises:
            UserError: there are fewer levels.
        """
        usual = tuple(map(rounded, self.default.at(steps, rho=self.info.rho)))
        fewer = [found.schedule for found in self.found if found.steps < steps]
        levels = sorted({*level_grid(self.info), *usual, *(s for found in fewer for s in found)}, reverse=True)
        levels = [s for s in levels if self.info.sigma_min < s <= self.info.sigma_max]
        place = {s: i for i, s in enumerate(levels)}
        usual = usual if set(usual) <= set(place) else None  # of a model of less noise than the task is meant for
        starts = [tuple(place[s] for s in own) for own in (usual, *fewer) if own is not None]
        result = search_timesteps(
            lambda indices: self.scores.badness(tuple(levels[i] for i in indices)),
            len(levels) + 1,
            steps,
            starts,
            sweeps=_SWEEPS,
            free_first=True,
            grow=False,
        )
        best = tuple(levels[i] for i in result.timesteps)
        judged = self.scores.judged(best, {USUAL: usual})
        found = Found(best, self.scores.numbers(result.curves, levels), judged, "sigmas")
        self.found.append(found)
        self.scores.keep(found)
        return found

    @torch.no_grad()
    def _features(self, sigmas: Schedule, fresh: bool) -> Float32[Tensor, "N 1"]:
        """The number of each result and its image."""
        part = range(self.num_images, 2 * self.num_images) if fresh else range(self.num_images)
        what = f"sigmas {listed(sigmas)}{' on fresh images' if fresh else ''}"
        which = "fresh images" if fresh else "images of the search"
        known = self.record.labels.get(which)
        labels, compared, residuals = [], [], []

        def report(done: int) -> None:
            if self.on_progress is not None:
                self.on_progress(what, done, len(part))

        report(0)
        for start in range(0, len(part), _CHUNK):
            numbers = part[start : start + _CHUNK]
            true = self.images[numbers.start : numbers.stop]
            result = make(
                self.model,
                self.method_of(true, sigmas),
                seeds=self.seed,
                class_labels=None if known is None else known[start : start + _CHUNK],
                batch_size=self.batch_size,
                numbers=numbers,
                on_done=lambda done, start=start: report(start + done),
            )
            compared.append(self._compared(result.images[:, 0], true))
            residuals.append(result.residual[:, 0])
            if result.class_labels is not None:
                labels += result.class_labels[:, 0].tolist()
        if labels and known is None:
            self.record.labels[which] = labels  # of all levels the same
        if fresh:
            self.record.residuals[sigmas] = torch.cat(residuals).double().mean().item()
        return torch.cat(compared)[:, None]

    def _compared(self, made: UInt8[Tensor, "N C H W"], true: UInt8[Tensor, "N C H W"]) -> Float32[Tensor, " N"]:
        numbers = self.metric.compare(made, true)
        if not bool(numbers.isfinite().all()):
            raise UserError(f"{self.metric.title} of an image is not finite", "check the weights of its network")
        return numbers


def level_grid(info: ModelInfo) -> list[float]:
    """Returns the noise levels among which those of an edit are searched, descending."""
    sigmas = karras_sigmas(_LEVELS + 1, max(info.sigma_min, _LOWEST), info.sigma_max, dtype=torch.float64)
    return [min(rounded(s), info.sigma_max) for s in sigmas.tolist()[:-1]]


def rounded(sigma: float) -> float:
    """Returns a level with four digits, so that the printed level is the one that was evaluated."""
    return float(f"{sigma:.4g}")
