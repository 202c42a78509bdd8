"""The results of calls, in the kinds that diffusers has."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Shaped
from torch import Tensor

from unistep.core.finite import check_finite

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

OutputType = Literal["pil", "np", "pt"]


class Output:
    """Base of results; a value is also to be had as output[0] or by its name, output["images"]."""

    def keys(self) -> list[str]:
        """Returns the names of the values."""
        return [field.name for field in fields(self)]  # pyright: ignore[reportArgumentType]

    def values(self) -> tuple[Any, ...]:
        """Returns the values."""
        return self.to_tuple()

    def items(self) -> list[tuple[str, Any]]:
        """Returns the values with their names."""
        return [(name, getattr(self, name)) for name in self.keys()]

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the values."""
        return tuple(getattr(self, name) for name in self.keys())

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass(frozen=True, eq=False)
class ImagePipelineOutput(Output):
    """The images of a call.

    Args:
        images: PIL images; or fp32 in [0, 1], [B, H, W, C] for "np", [B, C, H, W] for "pt".
    """

    images: "list[Image.Image] | np.ndarray | Tensor"


@dataclass(frozen=True, eq=False)
class SchedulerOutput(Output):
    """The result of a step.

    Args:
        prev_sample: images [B, C, H, W], noised to the next level.
    """

    prev_sample: Tensor


@dataclass(frozen=True, eq=False)
class UNetOutput(Output):
    """The output of a network.

    Args:
        sample: output [B, C, H, W].
    """

    sample: Tensor


def postprocess(x: Shaped[Tensor, "B C H W"], kind: OutputType) -> "list[Image.Image] | np.ndarray | Tensor":
    """Converts images in [-1, 1] to a kind of output.

    Args:
        x: images; others than those in [-1, 1] are clamped.
        kind: "pil" of 1 to 4 channels, "np" or "pt".

    Raises:
        NotFiniteError: a value is NaN or infinite.
    """
    check_finite(x, source="the sampler")
    x = (x / 2 + 0.5).clamp(0, 1)
    if kind == "pt":
        return x
    array = x.cpu().permute(0, 2, 3, 1).numpy()
    return array if kind == "np" else to_pil(array)


def to_pil(images: "np.ndarray") -> "list[Image.Image]":
    """Converts images in [0, 1] to PIL images.

    Args:
        images: [B, H, W, C] or a single one [H, W, C], of 1 to 4 channels.

    Raises:
        NotFiniteError: a value is NaN or infinite.
    """
    import torch
    from PIL import Image

    check_finite(torch.from_numpy(images), source="the sampler")
    pixels = ((images[None] if images.ndim == 3 else images) * 255).round().astype("uint8")
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]
