"""The interface of a method, one way of editing: `MeasurementEdit`, `NoisedEdit` and `DenoisingEdit` have it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.samplers.noise_source import NoiseSource


class Made(NamedTuple):
    """Images of a method.

    Args:
        x: images [B, C, H, W] in [-1, 1].
        residual: distance [B] between the model's estimate and the input, lower is better.
    """

    x: Tensor
    residual: Tensor


@runtime_checkable
class Method(Protocol):
    """A way of editing a number of inputs. `rows` are numbers of inputs of one group, one a batch entry."""

    size: tuple[int, int, int]
    """Channels, height and width of the results."""

    evaluations: int
    """Network evaluations of a result."""

    def __len__(self) -> int:
        """The number of inputs."""
        ...

    def group(self, index: int) -> int:
        """The group of an input; inputs of one group can share a batch."""
        ...

    def run(self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor | None, random: NoiseSource) -> Made:
        """Makes a batch of results."""
        ...

    def finish(self, row: int, x: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C H W"]:
        """Completes one result by itself."""
        ...

    def class_residuals(
        self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor, random: NoiseSource, sigmas: Sequence[float]
    ) -> Float[Tensor, "L B"]:
        """Returns the distance between estimates of the given classes and the inputs, at every noise level."""
        ...

    def measurement(self) -> UInt8[Tensor, "N C H W"]:
        """Returns the measurements of the inputs as pictures; of a method that measures nothing, the inputs."""
        ...
