"""The search for the noise levels of an edit: candidates are scored by how like the results are to the true images.

Images that are whole are measured, blurred, masked, and so on, edited from what is left of them, and compared with what
they were. Other than a sampler an edit need not begin with pure noise, so its first level is searched like the others
(`unistep.search.golden_section`), on a Karras grid of 40 levels to which the task's own levels are added. What was
found is compared with these (see `unistep.search.scores`). Denoising and JPEG begin at the noise of each input, and are
not searched.

How well what the model makes fits what is known is told beside and not searched for: at low noise a model gives back
what it is given, and everything fits.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

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
from unistep.search.cached_denoiser import RememberedDenoiser
from unistep.search.full_reference import Likeness
from unistep.search.golden_section import search_timesteps
from unistep.search.record import Schedule, SearchRecord
from unistep.search.scores import USUAL, Found, Progress, Scores, listed

_LEVELS = 40
_LOWEST = 0.002
_SWEEPS = 3
_CHUNK = 256  # images that are edited at once

MethodOf = Callable[[UInt8[Tensor, "N C H W"], Sequence[float]], Method]
"""How whole images are edited at some noise levels."""


def known_part(operator: Operator, model: LoadedModel, settle: int = 0) -> MethodOf:
    """Edits of what an operator keeps of the images, with so many evaluations without noise in the end."""
    settle_sigmas = settle_levels(settle, most=model.info.sigma_max, rho=model.info.rho)
    device, sigma_min = next(model.denoiser.parameters()).device, model.info.sigma_min

    def method(images: Tensor, levels: Sequence[float]) -> Method:
        y = [operator.A(x) for x in to_float(images).to(device).split(1)]
        return MeasurementEdit([operator] * len(y), y, levels, sigma_min, settle_sigmas=settle_sigmas)

    return method


def chosen_images(images: UInt8[Tensor, "N C H W"], count: int, name: str) -> UInt8[Tensor, "M C H W"]:
    """The 2 `count` images of a search: those to search with, then the fresh ones.

    Both are spread over the dataset, for many are sorted by class.

    Args:
        images: of the dataset.
        count: images a candidate.
        name: of the dataset, for messages.

    Raises:
        UserError: there are not so many.
    """
    if len(images) < 2 * count:
        raise UserError(
            f"--num_images {count}: as many fresh images judge what was found, and {name} has {len(images)}; "
            f"give at most {len(images) // 2}"
        )
    places = torch.arange(2 * count) * len(images) // (2 * count)
    return torch.cat([images[places[0::2]], images[places[1::2]]])


def task_settings(
    model: LoadedModel,
    task: str,
    known: dict[str, Any],
    images: UInt8[Tensor, "N C H W"],
    likeness: Likeness,
    *,
    seed: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """All that the numbers of a search depend on; the model is still in fp32. See `SearchRecord`.

    Args:
        model: which edits.
        task: name of the task.
        known: what is known of the images, as JSON.
        images: of the search, and fresh ones.
        likeness: what is made best.
        seed: of the noise.
        dtype: that the model computes in.
    """
    info = dataclasses.asdict(model.info)
    for name in ("timesteps", "schedules"):  # of no meaning to an edit
        del info[name]
    return {
        "metric": likeness.title,
        "number of images": len(images) // 2,
        "seed": seed,
        "task": task,
        "what is known": known,
        "dtype": str(dtype).removeprefix("torch."),
        "images": hashlib.sha256(images.contiguous().numpy().data).hexdigest(),
        "model's weights": weights_digest(model.denoiser),
        "model's noise range and scaling": info,
        "features": likeness.digest,
        "unistep": version("unistep"),
    }


class TaskSearch:
    """Finds noise levels of one task for one model.

    Args:
        model: a consistency model, in the precision that it is to compute in.
        default: noise levels of the task.
        method_of: how, see `known_part`.
        images: of the search, and as many fresh ones, see `chosen_images`.
        likeness: what is made best.
        record: of what was measured so far; kept up to date.
        seed: of the noise.
        batch_size: images at once on an accelerator.
        on_progress: see `Progress`.

    Raises:
        UserError: the model is no consistency model.
    """

    def __init__(
        self,
        model: LoadedModel,
        default: DefaultLevels,
        method_of: MethodOf,
        images: UInt8[Tensor, "N C H W"],
        likeness: Likeness,
        record: SearchRecord,
        *,
        seed: int = 0,
        batch_size: int = 64,
        on_progress: Progress | None = None,
    ) -> None:
        own = edit_model(model)
        # No level is one at which all schedules begin.
        remembered = RememberedDenoiser(own.denoiser, float("inf"))
        self.model, self.info, self.default = dataclasses.replace(own, denoiser=remembered), model.info, default
        self.method_of, self.images, self.likeness, self.record = method_of, images, likeness, record
        self.num_images, self.seed, self.batch_size = len(images) // 2, seed, batch_size
        self.on_progress = on_progress
        self.scores = Scores(likeness, record, self._features)
        self.found: list[Found] = []

    def find(self, steps: int) -> Found:
        """The levels of an edit of `steps` steps; those found before for fewer steps are where it starts as well.

        Raises:
            UserError: there are not so many levels.
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
        """How like each result is to its image."""
        part = range(self.num_images, 2 * self.num_images) if fresh else range(self.num_images)
        what = f"sigmas {listed(sigmas)}{' on fresh images' if fresh else ''}"
        which = "fresh images" if fresh else "images of the search"
        known = self.record.labels.get(which)
        labels, alike, apart = [], [], []

        def told(done: int) -> None:
            if self.on_progress is not None:
                self.on_progress(what, done, len(part))

        told(0)
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
                on_done=lambda done, start=start: told(start + done),
            )
            alike.append(self.likeness.compare(result.images[:, 0], true))
            apart.append(result.residual[:, 0])
            if result.class_labels is not None:
                labels += result.class_labels[:, 0].tolist()
        if labels and known is None:
            self.record.labels[which] = labels  # of all levels the same
        if fresh:
            self.record.beside[sigmas] = torch.cat(apart).double().mean().item()
        return torch.cat(alike)[:, None]


def level_grid(info: ModelInfo) -> list[float]:
    """The noise levels among which those of an edit are searched, descending."""
    sigmas = karras_sigmas(_LEVELS + 1, max(info.sigma_min, _LOWEST), info.sigma_max, dtype=torch.float64)
    return [min(rounded(s), info.sigma_max) for s in sigmas.tolist()[:-1]]


def rounded(sigma: float) -> float:
    """A level to four digits, so that what is printed is what was measured."""
    return float(f"{sigma:.4g}")
