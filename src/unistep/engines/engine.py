"""The interface of a program that another runtime computes, and the denoiser over it."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import round_sigma


@runtime_checkable
class Engine(Protocol):
    """A program of another runtime: tensors in, one tensor out, for a batch of any size and from any thread."""

    device: torch.device
    """Device on which tensors are taken and returned."""
    name: str
    """Name and version of the runtime."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Computes the program; inputs are in its order and in its dtypes."""
        ...


class EngineDenoiser:
    """A `Denoiser` over a program (x_t, sigma, class_labels) -> x0, without the labels of an unconditional model.

    Args:
        engine: program; sigma and images are fp32, labels int32.
        scaling: scalings of the model, for its table of noise levels; None has none.
        dtype: precision that the program computes in, as far as PyTorch has a name for it.
        parameters: number of parameters of the network.
    """

    def __init__(
        self, engine: Engine, scaling: object = None, dtype: torch.dtype = torch.float32, parameters: int = 0
    ) -> None:
        self.engine, self.scaling, self.dtype, self.num_parameters = engine, scaling, dtype, parameters

    @property
    def device(self) -> torch.device:
        """Device of its inputs and outputs."""
        return self.engine.device

    def round_sigma(self, sigma: float) -> float:
        """Returns the noise level nearest to `sigma` that the scaling has."""
        return round_sigma(self.scaling, sigma)

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        /,
    ) -> Float[Tensor, "B C H W"]:
        labels = () if class_labels is None else (class_labels.to(torch.int32),)
        return self.engine(x_t.float(), sigma.float(), *labels).to(x_t.dtype)
