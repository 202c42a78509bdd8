"""EDM denoising, the objective of the teacher (Karras et al. 2022, eq. 2 and table 1):

    L = E lambda(sigma) mean((D(x + sigma * noise, sigma) - x)^2),   ln sigma ~ N(P_mean, P_std^2)

with lambda = 1/c_out^2 = 1/sigma^2 + 1/sigma_data^2 ("karras").
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from unistep.core.distance import l2
from unistep.core.noise import LogNormal
from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom
from unistep.core.weighting import WEIGHTINGS, WeightingName
from unistep.objectives.protocol import Student, dropout_generator


@dataclass(frozen=True)
class DenoisingConfig:
    """EDM's objective.

    Args:
        P_mean, P_std: mean and standard deviation of ln sigma.
        weighting: lambda(sigma); "karras" is EDM's.
    """

    P_mean: float = -1.2
    P_std: float = 1.2
    weighting: WeightingName = "karras"


class DenoisingObjective:
    """The loss of `DenoisingConfig` for data of standard deviation `sigma_data`."""

    def __init__(self, config: DenoisingConfig, sigma_data: float = 0.5) -> None:
        self.config = config
        self.sigma_data = sigma_data
        self.noise_levels = LogNormal(config.P_mean, config.P_std)

    def loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int,
    ) -> Float[Tensor, " B"]:
        """The weighted denoising error of each image; independent of `step`."""
        sigma = self.noise_levels.sample(random.randn())
        noise = random.randn(*x.shape[1:])
        return self.loss_at(student, x, class_labels, sigma, noise, dropout_seed)

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        sigma: Float[Tensor, " B"],
        noise: Float[Tensor, "B C H W"],
        dropout_seed: int = 0,
    ) -> Float[Tensor, " B"]:
        """The loss at given noise levels and unit noise."""
        x_t = x + expand(sigma, x.ndim) * noise
        denoised = student(x_t, sigma, class_labels, generator=dropout_generator(dropout_seed, x))
        return WEIGHTINGS[self.config.weighting](sigma, self.sigma_data) * l2(denoised, x)

    def after_step(self, student: nn.Module, step: int) -> None:
        """Nothing: there is no second network."""

    def scalars(self, step: int) -> dict[str, float]:
        """Nothing: there is no curriculum."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing."""
