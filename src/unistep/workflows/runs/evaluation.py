"""Measurement of a model while it trains, against the data that it is trained on.

The same images are made each time, image i from the noise of `evaluation.seed` and i, and compared with the same images
of the data, so that nothing but the model changes between two evaluations. Processes share stretches of 64 images; the
computation of an image and its features does not depend on their number.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unistep.config import RunConfig
from unistep.core.parameterization import Preconditioned
from unistep.data import ImageDataset
from unistep.data.order import epoch_order
from unistep.errors import UserError
from unistep.formats.model import ModelInfo, num_classes
from unistep.generation.collect import share
from unistep.generation.generate import generate
from unistep.generation.labels import random_labels
from unistep.generation.plan import default_plan
from unistep.metrics.config import MIN_IMAGES, EvaluationConfig
from unistep.metrics.estimate import Estimate
from unistep.metrics.features.extract import features_of
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.metrics.features.table import default_features, open_features
from unistep.metrics.measurement import Features, Inputs
from unistep.metrics.metric import function_at
from unistep.metrics.table import METRICS
from unistep.runtime.processes import Processes, join_processes
from unistep.training.evaluation import Best

_STRETCH = 64


class TrainingEvaluation:
    """Measures models against the images that they are trained on.

    Args:
        config: distance, and numbers of images.
        dataset: images that the models are trained on.
        network: feature network.
        accelerator: device and precision of the models.
        processes: processes that share the work; all of them must call the same methods.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        dataset: ImageDataset,
        network: FeatureNetwork,
        accelerator: Accelerator,
        processes: Processes,
    ) -> None:
        self.config, self.dataset, self.network = config, dataset, network
        self.accelerator, self.processes = accelerator, processes
        self.metric = METRICS[config.metric]
        self.name = self.metric.title_with(network.info)
        self._reference: Features | None = None

    def prepare(self, say: Callable[[str], None]) -> None:
        """Computes the features of the reference, once, before the first `measure`.

        Args:
            say: called with a line about it.
        """
        c, size = self.config, len(self.dataset)
        count = min(c.reference_images, size)
        if self.processes.first:
            say(f"evaluation: features of {count:,} images of the data, by {self.network.info.name}")
        chosen = epoch_order(0, size, c.seed)[:count].sort().values
        reference = self._features(
            count, lambda part: self.dataset.batch(chosen[part.start : part.stop])[0], "the data"
        )
        self._reference = None if reference is None else Features(reference)

    def measure(self, model: nn.Module, info: ModelInfo) -> Estimate:
        """The distance of a model's images to those of the data; the same on all processes.

        Args:
            model: the averaged model.
            info: its noise range and kind.
        """
        assert isinstance(model, Preconditioned)
        config: Any = model.network.config
        classes = num_classes(config, info)
        shape = (config.in_channels, *self.dataset.image_size)
        plan, c, device = default_plan(info, self.config.steps), self.config, self.accelerator.device

        def make(part: range) -> Tensor:
            labels = random_labels(c.seed, part, classes) if classes else None
            with self.accelerator.autocast():
                made = generate(
                    model, plan, shape, part, seed=c.seed, labels=labels, batch_size=_STRETCH, device=device
                )
                return torch.cat(list(made))

        features = self._features(c.num_images, make, "the images of the model")
        return self._shared(None if features is None else self._compared(features))

    def in_words(self, best: Best, info: ModelInfo) -> str:
        """A line of the card of the best model."""
        nfe, c = default_plan(info, self.config.steps).nfe, self.config
        evaluations = "one network evaluation" if nfe == 1 else f"{nfe} network evaluations"
        count = min(c.reference_images, len(self.dataset))
        return (
            f"- Quality: {self.name} {best.text} (95% interval), of {c.num_images:,} images in {evaluations} each "
            f"against {count:,} of the data; the best of the run so far\n"
        )

    def _features(self, count: int, images: Callable[[range], Tensor], name: str) -> Tensor | None:
        """The features of images 0 to `count` - 1; on the first process, None on the others."""
        stretches = [range(start, min(start + _STRETCH, count)) for start in range(0, count, _STRETCH)]
        mine = itertools.islice(stretches, *share(len(stretches), self.processes))
        kind = self.metric.kind
        try:
            found = [features_of(images(part), self.network, (kind,), name, part.start)[kind] for part in mine]
        except UserError as error:  # images that are no numbers; the other processes must hear of it
            found = str(error)
        gathered: Sequence[list[Tensor] | str] = self.processes.gather(found)
        if (refused := self.processes.broadcast(next((g for g in gathered if isinstance(g, str)), None))) is not None:
            raise UserError(refused)
        return torch.cat([part for parts in gathered for part in parts]) if gathered else None

    def _compared(self, features: Tensor) -> Estimate:
        assert self._reference is not None  # `prepare` has set it
        inputs = Inputs(self.name, Features(features), self._reference, (self.metric.name,))
        return function_at(self.metric.compute)(inputs).estimate

    def _shared(self, found: Estimate | None) -> Estimate:
        """The first process's number, on all."""
        found = self.processes.broadcast(found)
        assert found is not None
        return found


def open_evaluation(config: RunConfig, dataset: ImageDataset, accelerator: Accelerator) -> TrainingEvaluation | None:
    """Prepares the measurement of a run's last stage; writes nothing.

    Args:
        config: run.
        dataset: its images.
        accelerator: device and precision of the models.

    Returns:
        The measurement; None where the run has none.

    Raises:
        UserError: the feature network cannot be had or does not take such images, or there are too few of them.
    """
    if config.evaluated is None:
        return None
    if len(dataset) < MIN_IMAGES:
        raise UserError(
            f"`evaluate_every` needs {MIN_IMAGES} images to compare with, and {config.data.source} has {len(dataset)}; "
            "set it to 0"
        )
    name = config.evaluation.features
    if name == "auto":
        name = default_features(dataset.channels, *dataset.image_size)
    try:
        with accelerator.main_process_first():  # one process fetches the weights, the others find them
            network = open_features(name, accelerator.device, path=config.evaluation.features_path)
        # Refuses images now that the first evaluation would refuse.
        network(dataset.batch(torch.arange(2))[0], (METRICS[config.evaluation.metric].kind,))
    except UserError as error:
        message = str(error).replace("`features`", "`evaluation.features`")
        raise UserError(f"`evaluation.features` {name}: {message}") from None
    processes = join_processes() if accelerator.num_processes > 1 else Processes()
    return TrainingEvaluation(config.evaluation, dataset, network, accelerator, processes)
