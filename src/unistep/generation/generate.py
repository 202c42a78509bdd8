"""Images from a model, each from its own seed: image i is the same in any batch and on any number of processes.

Its own noise is not enough for that: matrix products, convolutions and the ends of vectorised loops round differently
in batches of different sizes. So a network always sees a *tile* of the same number of images, image i at place
i mod tile, the surplus thrown away: what computes an image does not depend on the batch that was asked for.

On CPUs the tile is 16 images up to 32 x 32 pixels, which are slow alone, and one image above, where a CPU gains nothing
by more. On accelerators it is the batch size, for they need large batches: there other batch sizes may change an image
by rounding, other numbers of images or processes do not.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.finite import Watched
from unistep.core.pixels import to_uint8
from unistep.core.random import ImageRandom, image_seeds
from unistep.generation.plan import Plan


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    plan: Plan,
    shape: tuple[int, int, int],
    indices: Sequence[int],
    *,
    seed: int = 0,
    labels: Int64[Tensor, " N"] | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[UInt8[Tensor, "B C H W"]]:
    """Yields the images `indices` of the run `seed`, a batch at a time, as uint8 on the CPU.

    Args:
        denoiser: denoiser or consistency function.
        plan: noise levels or solver.
        shape: channels, height, width of an image.
        indices: numbers of the images in the run; image i is always made from `image_seed(seed, i)`.
        seed: seed of the run.
        labels: class of each index [N]; None for an unconditional model.
        batch_size: images a batch.
        device: device of the denoiser; noise is drawn there, the same on every device.
        on_batch: callback with the number of images that are done.

    Raises:
        NotFiniteError: an output of the network is not finite; the batch is not given.
    """
    watched = Watched(denoiser)
    tile = tile_size(shape, batch_size, device)
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        images = []
        for group in _groups(part, tile):
            at_place = {part[p] % tile: p for p in group}
            filled = [at_place.get(place, group[0]) for place in range(tile)]
            random = ImageRandom(image_seeds(seed, [part[p] for p in filled]), device)
            tile_labels = None if labels is None else labels[[start + p for p in filled]].to(device)
            x0 = plan.sample(watched, random.randn(*shape), tile_labels, random)
            watched.check()
            images.append(to_uint8(x0[list(at_place)]).cpu())
        yield torch.cat(images)
        if on_batch:
            on_batch(start + len(part))


def tile_size(shape: tuple[int, int, int], batch_size: int, device: torch.device | str) -> int:
    """Number of images that the network computes at once: the tile of the module's text."""
    if torch.device(device).type != "cpu":
        return batch_size
    return 16 if shape[1] * shape[2] <= 32 * 32 else 1


def _groups(indices: Sequence[int], tile: int) -> Iterator[list[int]]:
    """The positions 0, 1, ... of `indices` in groups whose images lie at rising places of one tile."""
    group: list[int] = []
    for position, index in enumerate(indices):
        if group and index % tile <= indices[group[-1]] % tile:
            yield group
            group = []
        group.append(position)
    if group:
        yield group
