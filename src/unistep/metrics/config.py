"""Settings of the evaluation in training. Nothing here imports torch: the help of `unistep train` reads it."""

import math
from dataclasses import dataclass

from unistep.checks import MAX_SEED, check_range
from unistep.metrics.table import TrainingMetricName

MIN_IMAGES = 20  # the Frechet distance takes its error from ten groups


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation of the averaged model while it trains.

    Args:
        num_images: number of images that are made, from the same noise each time.
        metric: distance to the data, as "kd", kernel distance, unbiased, or "fd", Frechet distance, too large where
            there are few images; or another one of `METRICS` that is better where it is lower.
        features: network whose features are compared; "auto" takes mnist for grey images of 28 or 32 pixels, inception
            for all others.
        features_path: path of its weights; null downloads them once.
        reference_images: number of images of the data that are compared with, drawn once; all where there are fewer.
        steps: number of sampling steps; null is the model's own, 1 of a consistency model.
        seed: seed of the images that are made, and of the choice of those that they are compared with.

    Raises:
        UserError: a value is out of range.
    """

    num_images: int = 1000
    metric: TrainingMetricName = "kd"
    features: str = "auto"
    features_path: str | None = None
    reference_images: int = 10_000
    steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_images", "reference_images"):
            check_range(name, getattr(self, name), MIN_IMAGES, math.inf)
        check_range("steps", self.steps, 1, math.inf)
        check_range("seed", self.seed, 0, MAX_SEED)
