"""Paths through noise, rendered frame by frame."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from unistep.core.finite import Watched
from unistep.core.pixels import to_uint8
from unistep.core.random import ImageRandom
from unistep.editing.model import EditModel
from unistep.generation.generate import tile_size
from unistep.samplers.consistency import renoise
from unistep.samplers.ode_step import clipped, level


def render_path(
    model: EditModel,
    path: Float[Tensor, "N C H W"],
    levels: Sequence[float],
    labels: Int64[Tensor, " N"] | None = None,
    *,
    seed: int = 0,
    batch_size: int = 64,
    on_done: Callable[[int], None] | None = None,
) -> UInt8[Tensor, "N C H W"]:
    """Makes the image of every point of a path.

    Args:
        model: consistency model.
        path: points x_T with noise of the first level.
        levels: noise levels, descending; the noise added at those after the first is the same in every frame, so that
            frames do not flicker.
        labels: class of each frame.
        seed: seed of that noise.
        batch_size: frames at once on an accelerator.
        on_done: called with the number of frames that are done.

    Raises:
        NotFiniteError: an output of the network is not finite.
    """
    tile = tile_size(model.shape, batch_size, model.device)
    watched = Watched(model.denoiser)
    denoiser = clipped(watched, True)
    random = ImageRandom([seed])
    noises = [random.randn(*path.shape[1:]).to(model.device) for _ in levels[1:]]
    frames = []
    for start in range(0, len(path), tile):
        places = [min(start + place, len(path) - 1) for place in range(tile)]
        x = path[places].to(model.device)
        own = None if labels is None else labels[places].to(model.device)
        x0 = denoiser(x, level(levels[0], x), own)
        for sigma, noise in zip(levels[1:], noises, strict=True):
            x = renoise(x0, noise.expand_as(x0), sigma, model.info.sigma_min)
            x0 = denoiser(x, level(sigma, x), own)
        watched.check()
        frames.append(to_uint8(x0[: len(path) - start]).cpu())
        if on_done:
            on_done(min(start + tile, len(path)))
    return torch.cat(frames)
