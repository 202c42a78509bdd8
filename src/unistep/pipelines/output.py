"""The result of a pipeline call, in the kinds that diffusers has."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Shaped
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

OutputType = Literal["pil", "np", "pt"]


@dataclass(frozen=True)
class ImagePipelineOutput:
    """The images of a call; also to be had as output[0] or output["images"].

    Args:
        images: PIL images; or fp32 in [0, 1], [B, H, W, C] for "np", [B, C, H, W] for "pt".
    """

    images: "list[Image.Image] | np.ndarray | Tensor"

    def to_tuple(self) -> tuple[Any]:
        """Returns (images,)."""
        return (self.images,)

    def __getitem__(self, key: int | str) -> Any:
        return self.images if key == "images" else self.to_tuple()[key]  # pyright: ignore

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())


def postprocess(x: Shaped[Tensor, "B C H W"], kind: OutputType) -> "list[Image.Image] | np.ndarray | Tensor":
    """Converts images in [-1, 1] to a kind of output.

    Args:
        x: images; others than those in [-1, 1] are clamped.
        kind: "pil" of 1 to 4 channels, "np" or "pt".
    """
    x = (x / 2 + 0.5).clamp(0, 1)
    if kind == "pt":
        return x
    array = x.cpu().permute(0, 2, 3, 1).numpy()
    if kind == "np":
        return array
    from PIL import Image

    pixels = (array * 255).round().astype("uint8")
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]
