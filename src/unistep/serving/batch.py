"""Images of several requests in one batch, each with the bits that it has alone.

An image depends on its own numbers and on the place in the batch that the network sees (`unistep.generation.generate`):
the same program computes every batch of one size, and image i of a run stands at place i mod tile. So images may share
a batch where their places differ. On most devices even the place does not matter; `places_matter` tries that once for a
model, and where it does not, any images may share a batch. There a smaller number of images at once mostly gives the
same bits too, so that a lone image need not wait for a whole tile: `equal_tiles` tries it, by `fingerprint`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.finite import Watched
from unistep.core.pixels import to_uint8
from unistep.core.random import ImageRandom
from unistep.generation.plan import Plan


@dataclass(frozen=True)
class Row:
    """One image to be made.

    Args:
        key: seed of its random numbers, as `image_seed` makes it.
        index: number of the image in its run, which gives its place in a batch.
        label: class; None for an unconditional model.
    """

    key: int
    index: int
    label: int | None


class _UnwantedError(Exception):
    """Nobody wants the images any more."""


class _Wanted(Watched):
    """A denoiser that is evaluated while somebody wants its outputs."""

    def __init__(self, denoiser: Denoiser, unwanted: Callable[[], bool]) -> None:
        super().__init__(denoiser)
        self._unwanted = unwanted

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int64[Tensor, " B"] | None = None,
        /,
    ) -> Float[Tensor, "B C H W"]:
        if self._unwanted():
            raise _UnwantedError
        return super().__call__(x_t, sigma, class_labels)


@torch.no_grad()
def make_rows(
    denoiser: Denoiser,
    plan: Plan,
    shape: tuple[int, int, int],
    rows: Sequence[Row],
    *,
    tile: int,
    by_place: bool = True,
    device: torch.device | str = "cpu",
    unwanted: Callable[[], bool] = lambda: False,
) -> UInt8[Tensor, "N C H W"] | None:
    """Makes the images of rows, in their order, on the CPU; returns None where nobody wants them any more.

    Args:
        denoiser: denoiser or consistency function.
        plan: noise levels or solver.
        shape: channels, height, width of an image.
        rows: images to be made.
        tile: images that the network computes at once.
        by_place: whether a row must stand at its own place of a tile.
        device: device of the denoiser.
        unwanted: returns whether nobody wants the images any more; asked before every evaluation.

    Raises:
        NotFiniteError: an output of the network is not finite.
    """
    watched = _Wanted(denoiser, unwanted)
    made = torch.empty((len(rows), *shape), dtype=torch.uint8)
    for group in _groups(rows, tile, by_place):
        # Empty places compute the first row again, for the number of images must stay the same.
        first = next(iter(group.values()))
        filled = [rows[group.get(place, first)] for place in range(tile)]
        random = ImageRandom([row.key for row in filled], device)
        labels = _labels(filled, device)
        try:
            x0 = plan.sample(watched, random.randn(*shape), labels, random)
        except _UnwantedError:
            return None
        watched.check()
        made[list(group.values())] = to_uint8(x0[list(group)]).cpu()
    return made


def places_matter(
    denoiser: Denoiser, plan: Plan, shape: tuple[int, int, int], num_classes: int, tile: int, device: torch.device | str
) -> bool:
    """Returns whether an image changes, if by one bit, with its place in a tile or with its company."""
    if tile == 1:
        return False
    rows = _trial_rows(tile, num_classes)
    values = []
    for shift in (0, 1, tile // 2 + 1):
        values.append(_values(denoiser, plan, shape, rows[-shift:] + rows[:-shift], device).roll(-shift, 0))
    return not all(torch.equal(values[0], other) for other in values[1:])


def equal_tiles(
    denoiser: Denoiser,
    plans: Sequence[Plan],
    shape: tuple[int, int, int],
    num_classes: int,
    tile: int,
    device: torch.device | str,
) -> tuple[int, ...]:
    """Returns the numbers of images at once that give the bits of a whole tile, rising, and at last the tile itself.

    Numbers above one are tried: a single image is computed by other products, whose last bits differ.

    Args:
        denoiser: denoiser or consistency function.
        plans: noise levels or solvers at which it is tried.
        shape: channels, height, width of an image.
        num_classes: classes of the model; 0 for an unconditional one.
        tile: images that the network computes at once.
        device: device of the denoiser.
    """
    smaller = [2**i for i in range(1, tile.bit_length()) if 2**i < tile]
    count = max(smaller, default=0)
    whole = fingerprint(denoiser, plans, shape, num_classes, tile, count, device)
    equal = [one for one in smaller if fingerprint(denoiser, plans, shape, num_classes, one, count, device) == whole]
    return (*equal, tile)


@torch.no_grad()
def fingerprint(
    denoiser: Denoiser,
    plans: Sequence[Plan],
    shape: tuple[int, int, int],
    num_classes: int,
    tile: int,
    count: int,
    device: torch.device | str,
) -> str:
    """Returns a digest of the values of some images, before they are rounded to pixels.

    Args:
        denoiser: denoiser or consistency function.
        plans: noise levels or solvers of the images.
        shape: channels, height, width of an image.
        num_classes: classes of the model; 0 for an unconditional one.
        tile: images that the network computes at once.
        count: number of images; those of a whole tile are computed where the tile is larger.
        device: device of the denoiser.
    """
    digest = hashlib.sha256()
    rows = _trial_rows(max(count, tile), num_classes)
    for plan in plans:
        parts = [_values(denoiser, plan, shape, rows[i : i + tile], device) for i in range(0, len(rows), tile)]
        digest.update(torch.cat(parts)[:count].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _trial_rows(count: int, num_classes: int) -> list[Row]:
    return [Row(key + 1, key, key % num_classes if num_classes else None) for key in range(count)]


@torch.no_grad()
def _values(
    denoiser: Denoiser, plan: Plan, shape: tuple[int, int, int], rows: Sequence[Row], device: torch.device | str
) -> Float[Tensor, "B C H W"]:
    """Values of the images of rows, computed at once."""
    random = ImageRandom([row.key for row in rows], device)
    return plan.sample(denoiser, random.randn(*shape), _labels(rows, device), random)


def _groups(rows: Sequence[Row], tile: int, by_place: bool) -> Iterator[dict[int, int]]:
    """The positions of rows in groups of at most `tile`, each at its place."""
    if not by_place:
        for start in range(0, len(rows), tile):
            yield {i: start + i for i in range(min(tile, len(rows) - start))}
        return
    open_: list[dict[int, int]] = []
    for position, row in enumerate(rows):
        place = row.index % tile
        free = next((group for group in open_ if place not in group), None)
        if free is None:
            free = {}
            open_.append(free)
        free[place] = position
    yield from open_


def _labels(rows: Sequence[Row], device: torch.device | str) -> Int64[Tensor, " B"] | None:
    if rows[0].label is None:
        return None
    return torch.tensor([row.label for row in rows], dtype=torch.int64, device=device)
