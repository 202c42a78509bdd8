"""Unit Gaussian noise of torch's generators, as diffusers draws it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Generator = torch.Generator | Sequence[torch.Generator] | None


def randn(shape: tuple[int, ...], generator: Generator, device: torch.device | str) -> Float[Tensor, "B ..."]:
    """Draws unit Gaussian noise, fp32, on the device of the generator, and moves it to `device`.

    Args:
        shape: shape of the noise, images first.
        generator: generator of all images, or one an image; None is torch's default one of `device`.
        device: device of the result.
    """
    if generator is None or isinstance(generator, torch.Generator):
        place = device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=place).to(device)
    rows = [torch.randn((1, *shape[1:]), generator=g, device=g.device) for g in generator]
    return torch.cat([row.to(device) for row in rows])
