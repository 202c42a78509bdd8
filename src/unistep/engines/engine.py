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

    Over the program of a flow map, (x_t, sigma, sigma_end, class_labels) -> x0, it is a `FlowMap`.

    Args:
        engine: program; sigma and images are fp32, labels int32.
        scaling: scalings of the model, for its table of noise levels; None has none.
        dtype: precision that the program computes in, as far as PyTorch has a name for it.
        parameters: number of parameters of the network.
        flow_map: whether the program takes the end of each trajectory after its noise level.
        guidance: scale of guidance by default, of a program that takes one before the labels; None takes none.
    """

    def __init__(
        self,
        engine: Engine,
        scaling: object = None,
        dtype: torch.dtype = torch.float32,
        parameters: int = 0,
        *,
        flow_map: bool = False,
        guidance: float | None = None,
    ) -> None:
        self.engine, self.scaling, self.dtype, self.num_parameters = engine, scaling, dtype, parameters
        self.flow_map, self.guidance = flow_map, guidance

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
        sigma_end: Float[Tensor, " B"] | None = None,
        /,
        *,
        guidance: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """Returns clean images; the arguments are those of a `FlowMap`.

        Args:
            x_t: noisy images.
            sigma: noise level of each image.
            class_labels: class of each image; None for an unconditional model.
            sigma_end: level at which each trajectory ends; None is 0, and the only value of other models.
            guidance: scale of guidance of each image; None is the model's own.

        Raises:
            ValueError: an end or a scale for a program without this input.
        """
        if (sigma_end is not None and not self.flow_map) or (guidance is not None and self.guidance is None):
            raise ValueError("this program has no input for the end of a trajectory, or none for guidance")
        more = []
        if self.flow_map:
            more.append(torch.zeros_like(sigma) if sigma_end is None else sigma_end)
        if self.guidance is not None:
            more.append(torch.full_like(sigma, self.guidance) if guidance is None else guidance)
        labels = () if class_labels is None else (class_labels.to(torch.int32),)
        return self.engine(x_t.float(), sigma.float(), *(one.float() for one in more), *labels).to(x_t.dtype)
