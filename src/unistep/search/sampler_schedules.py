"""The search for a model's timesteps: candidates are scored by a measure of the images they make.

The images of the search are 0 to n - 1 of a seed, the fresh ones n to 2n - 1 (see `unistep.search.scores`).
What was found is compared with levels that are spaced evenly and with the model's own.
"""

import dataclasses
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo
from unistep.generation.generate import generate
from unistep.generation.plan import consistency_plan, random_labels, spaced_timesteps
from unistep.generation.settings import weights_digest
from unistep.metrics.features.extract import features_of
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.search.cached_denoiser import RememberedDenoiser
from unistep.search.golden_section import search_timesteps
from unistep.search.metric import Yardstick
from unistep.search.record import Schedule, SearchRecord
from unistep.search.scores import EVEN, OWN, Found, Progress, Scores, listed


def search_settings(
    model: LoadedModel, yardstick: Yardstick, *, num_images: int, seed: int, dtype: torch.dtype
) -> dict[str, Any]:
    """All that the numbers of a search depend on; the model is still in fp32. See `SearchRecord`."""
    info = dataclasses.asdict(model.info)
    # What is found may be written there.
    for name in ("timesteps", "schedules"):
        del info[name]
    return {
        "metric": yardstick.title,
        "number of images": num_images,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "model's weights": weights_digest(model.denoiser),
        "model's noise range and scaling": info,
        "reference and features": yardstick.digest,
        "unistep": version("unistep"),
    }


class ScheduleSearch:
    """Finds schedules of one model, by one measure.

    Args:
        model: a consistency model, in the precision that it is to compute in.
        network: of features.
        yardstick: of those features.
        record: of what was measured so far; kept up to date.
        num_images: a candidate.
        seed: of the images.
        batch_size: images at once on an accelerator.
        device: of the model.
        on_progress: see `Progress`.

    Raises:
        UserError: the model is no consistency model, or there are too few images.
    """

    def __init__(
        self,
        model: LoadedModel,
        network: FeatureNetwork,
        yardstick: Yardstick,
        record: SearchRecord,
        *,
        num_images: int,
        seed: int = 0,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
    ) -> None:
        check_searchable(model)
        self.model, self.info, self.network, self.yardstick = model, model.info, network, yardstick
        self.record, self.num_images, self.seed = record, num_images, seed
        self.batch_size, self.device, self.on_progress = batch_size, device, on_progress
        self.scores = Scores(yardstick, record, self._features)
        self.denoiser = RememberedDenoiser(model.denoiser, model.info.sigma_max)
        self.found: list[Found] = []

    def find(self, steps: int) -> Found:
        """The schedule of `steps` steps; those found before for fewer steps are where it starts.

        Raises:
            UserError: the model's grid has not so many levels.
        """
        even = tuple(spaced_timesteps(steps, self.info.num_train_timesteps))
        own = self.info.schedule(steps)
        starts = [even, *(found.timesteps for found in self.found if found.steps < steps)]
        # A schedule may end at sigma_min, where a step does nothing: it is compared, but nothing is built on it.
        if own is not None and own[-1] < self.info.num_train_timesteps - 1:
            starts.append(own)
        result = search_timesteps(self.scores.badness, self.info.num_train_timesteps, steps, starts)
        judged = self.scores.judged(result.timesteps, {EVEN: even, OWN: own})
        found = Found(result.timesteps, self.scores.numbers(result.curves), judged)
        self.found.append(found)
        self.scores.keep(found)
        return found

    def _features(self, schedule: Schedule, fresh: bool) -> Float32[Tensor, "N D"]:
        info, shape, timesteps = self.info, self.model.image_shape, [int(i) for i in schedule]
        part = range(self.num_images, 2 * self.num_images) if fresh else range(self.num_images)
        plan = consistency_plan(timesteps, info.num_train_timesteps, info.sigma_min, info.sigma_max, info.rho)
        labels = random_labels(self.seed, part, self.model.num_classes) if self.model.num_classes else None
        what = f"timesteps {listed(schedule)}{' on fresh images' if fresh else ''}"

        def told(done: int) -> None:
            if self.on_progress is not None:
                self.on_progress(what, done, len(part))

        told(0)
        made = generate(
            self.denoiser,
            plan,
            shape,
            part,
            seed=self.seed,
            labels=labels,
            batch_size=self.batch_size,
            device=self.device,
            on_batch=told,
        )
        kind = self.yardstick.kind
        name, batches = str(self.model.path), []
        for images in made:
            batches.append(features_of(images, self.network, [kind], name, part.start + sum(map(len, batches)))[kind])
        return torch.cat(batches)


def check_searchable(model: LoadedModel) -> None:
    """Refuses what has no timesteps to choose.

    Raises:
        UserError: a diffusion model.
    """
    if model.info.kind != "consistency":
        raise UserError(
            f"{model.path} is a diffusion model, whose solver takes any number of --steps; "
            "timesteps are searched for consistency models"
        )


def worth_keeping(found: Found, better: str) -> bool:
    """Whether what was found is better than how the model is sampled now, on images that had no part in the choice."""
    now = found.of(OWN) or found.of(EVEN)
    if now is None or now.difference is None:
        return False
    return now.difference.value < 0 if better == "lower" else now.difference.value > 0


def with_schedules(info: ModelInfo, schedules: list[tuple[int, ...]]) -> ModelInfo:
    """The model's information with these schedules in the place of its own."""
    for schedule in schedules:
        info = info.with_schedule(schedule)
    return info
