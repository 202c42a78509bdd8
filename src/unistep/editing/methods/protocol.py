"""What a way to edit is: `Known` keeps a part of every image, `Guided` and `Noisy` begin with images as they are."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.samplers.noise_source import NoiseSource


class Made(NamedTuple):
    """Images [B, C, H, W] in [-1, 1], and how badly each fits what is known."""

    x: Tensor
    disagreement: Tensor


@runtime_checkable
class Method(Protocol):
    """One way to make images from what is given. Rows are numbers of inputs, of one group."""

    size: tuple[int, int, int]
    """Channels, height and width of what is made."""

    evaluations: int
    """Of the network, a result."""

    def __len__(self) -> int:
        """How many inputs there are."""
        ...

    def group(self, index: int) -> int:
        """Inputs of the same group can be worked on in one batch."""
        ...

    def run(self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor | None, random: NoiseSource) -> Made:
        """Results."""
        ...

    def finish(self, row: int, x: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C H W"]:
        """What is done to a result alone, in the end."""
        ...

    def misfit(
        self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor, random: NoiseSource, sigmas: Sequence[float]
    ) -> Float[Tensor, "L B"]:
        """How badly images of these classes fit what is known, judged at every one of the noise levels, descending."""
        ...

    def measurement(self) -> UInt8[Tensor, "N C H W"]:
        """What is known, as pictures."""
        ...
