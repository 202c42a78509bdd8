"""Search for the timesteps of a model: candidates are scored by a metric of the images they make.

The images of the search are 0 to n - 1 of a seed, the fresh ones n to 2n - 1 (see `unistep.searching.scores`). The
schedule that was found is compared with one that is evenly spaced and with the model's own.
"""

from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo
from unistep.generation.generate import generate
from unistep.generation.labels import random_labels
from unistep.generation.plan import consistency_plan, spaced_timesteps
from unistep.generation.settings import weights_digest
from unistep.metrics.features.extract import features_of
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.metrics.metric import Better
from unistep.runtime.progress import Progress
from unistep.searching.cached_denoiser import CachedDenoiser
from unistep.searching.golden_section import search_timesteps
from unistep.searching.metric import SearchMetric
from unistep.searching.record import Schedule, SearchRecord
from unistep.searching.scores import EVEN, OWN, Found, Scores, listed
from unistep.text import version_of


def search_settings(
    model: LoadedModel, metric: SearchMetric, *, num_images: int, seed: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Returns everything that the numbers of a search depend on, for `SearchRecord`.

    Args:
        model: model in fp32.
        metric: metric of the search.
        num_images: number of images a candidate.
        seed: seed of the images.
        dtype: precision that the network computes in.
    """
    info = model.info.settings()
    # The search may write its results there.
    for name in ("timesteps", "schedules"):
        del info[name]
    return {
        "metric": metric.title,
        "number of images": num_images,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "model's weights": weights_digest(model.denoiser),
        "model's noise range and scaling": info,
        "reference and features": metric.digest,
        "unistep": version_of(),
    }


class ScheduleSearch:
    """Finds timesteps of one model by one metric.

    Args:
        model: consistency model in the precision that it is to compute in.
        network: feature network.
        metric: metric of its features.
        record: numbers that were computed before; kept up to date.
        num_images: number of images a candidate.
        seed: seed of the images; image i uses the stream (seed, i).
        batch_size: number of images computed at once on an accelerator.
        device: device of the model.
        on_progress: called with the progress, see `Progress`.

    Raises:
        UserError: the model is no consistency model, or there are too few images.
    """

    def __init__(
        self,
        model: LoadedModel,
        network: FeatureNetwork,
        metric: SearchMetric,
        record: SearchRecord,
        *,
        num_images: int,
        seed: int = 0,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        on_progress: Progress | None = None,
    ) -> None:
        check_searchable(model)
        self.model, self.info, self.network, self.metric = model, model.info, network, metric
        self.record, self.num_images, self.seed = record, num_images, seed
        self.batch_size, self.device, self.on_progress = batch_size, device, on_progress
        self.scores = Scores(metric, record, self._features)
        self.denoiser = CachedDenoiser(model.denoiser, model.info.sigma_max)
        self.found: list[Found] = []

    def find(self, steps: int) -> Found:
        """Finds the schedule of a number of steps; those found before for fewer steps are where it starts.

        Args:
            steps: number of network evaluations an image.

        Raises:
            UserError: the model's grid has fewer levels.
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
        grid = (info.num_train_timesteps, info.sigma_min, info.sigma_max, info.rho)
        plan = consistency_plan(timesteps, *grid, info.clip)
        labels = random_labels(self.seed, part, self.model.num_classes) if self.model.num_classes else None
        what = f"timesteps {listed(schedule)}{' on fresh images' if fresh else ''}"

        def report(done: int) -> None:
            if self.on_progress is not None:
                self.on_progress(what, done, len(part))

        report(0)
        made = generate(
            self.denoiser,
            plan,
            shape,
            part,
            seed=self.seed,
            labels=labels,
            batch_size=self.batch_size,
            device=self.device,
            on_batch=report,
        )
        kind = self.metric.kind
        name, batches = str(self.model.path), []
        for images in made:
            batches.append(features_of(images, self.network, [kind], name, part.start + sum(map(len, batches)))[kind])
        return torch.cat(batches)


def check_searchable(model: LoadedModel) -> None:
    """Passes where a model has timesteps to choose.

    Raises:
        UserError: it is a diffusion model.
    """
    if model.info.kind != "consistency":
        raise UserError(
            f"{model.path} is a diffusion model, whose solver takes any number of `steps`; "
            "timesteps are searched for consistency models"
        )


def worth_keeping(found: Found, better: Better) -> bool:
    """Whether a schedule is better on fresh images than the one that the model is sampled with now.

    Args:
        found: result of the search.
        better: direction of improvement of its numbers.
    """
    now = found.of(OWN) or found.of(EVEN)
    if now is None or now.difference is None:
        return False
    return now.difference.value < 0 if better == "lower" else now.difference.value > 0


def with_schedules(info: ModelInfo, schedules: list[tuple[int, ...]]) -> ModelInfo:
    """Returns the model's information with schedules in the place of its own of as many steps.

    Args:
        info: information of the model.
        schedules: timesteps of each schedule.
    """
    for schedule in schedules:
        info = info.with_schedule(schedule)
    return info
