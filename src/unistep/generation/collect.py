"""All images of a run: into memory, or into files that outlive a kill, over any number of processes."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.generation.generate import generate, tile_size
from unistep.generation.plan import Plan
from unistep.generation.resumable import ResumableWriter
from unistep.runtime.processes import Processes

_COUNT_SECONDS = 2.0


def collect(
    denoiser: Denoiser,
    plan: Plan,
    shape: tuple[int, int, int],
    num_images: int,
    labels: Int64[Tensor, " N"] | None,
    *,
    seed: int,
    batch_size: int,
    device: torch.device | str = "cpu",
    on_done: Callable[[int], None] | None = None,
) -> UInt8[Tensor, "N C H W"]:
    """Makes images 0 to `num_images` - 1, in order, in memory.

    Args:
        denoiser: denoiser or consistency function.
        plan: noise levels or solver.
        shape: channels, height, width of an image.
        num_images: number of images N.
        labels: class of each image [N]; None for an unconditional model.
        seed: seed of the run; image i uses the stream (seed, i).
        batch_size: images a batch on an accelerator.
        device: device of the denoiser.
        on_done: callback with the number of images that are done.

    Returns:
        The images, uint8 on the CPU.
    """
    made = []
    for part in tiles([range(num_images)], tile_size(shape, batch_size, device)):
        made.append(_make(denoiser, plan, shape, part, labels, seed, batch_size, device))
        if on_done:
            on_done(part.stop)
    return torch.cat(made)


def collect_into(
    unfinished: ResumableWriter,
    denoiser: Denoiser,
    plan: Plan,
    labels: Int64[Tensor, " N"] | None,
    *,
    seed: int,
    batch_size: int,
    device: torch.device | str = "cpu",
    processes: Processes | None = None,
    on_done: Callable[[int], None] | None = None,
) -> None:
    """Makes the images that `unfinished` lacks; each process its share. It is claimed before any process comes here.

    Returns once all processes are through. What an exception or a signal breaks off is kept as far as it is made.

    Args:
        unfinished: writer that takes the images.
        denoiser: denoiser or consistency function.
        plan: noise levels or solver.
        labels: class of each image [N]; None for an unconditional model.
        seed: seed of the run; image i uses the stream (seed, i).
        batch_size: images a batch on an accelerator.
        device: device of the denoiser.
        processes: this process among those of the run; None is the only one.
        on_done: callback with the number of images that all processes together have done.

    Raises:
        UserError: an image cannot be written, or another process has ended early.
    """
    processes = processes or Processes()
    shape = unfinished.shape
    tile = tile_size(shape, batch_size, device)
    missing = unfinished.missing()
    processes.wait()  # nobody writes before all have looked
    report = _Report(unfinished, processes, on_done, unfinished.num_images - sum(map(len, missing)))
    try:
        for part in islice(tiles(missing, tile), *share(sum(1 for _ in tiles(missing, tile)), processes)):
            unfinished.write(part.start, _make(denoiser, plan, shape, part, labels, seed, batch_size, device))
            report(len(part))
    finally:
        unfinished.flush()
    processes.wait(lambda: report(0))


class _Report:
    """Reports the number of images that are done; where other processes make some, files are counted now and then."""

    def __init__(
        self, unfinished: ResumableWriter, processes: Processes, say: Callable[[int], None] | None, done: int
    ) -> None:
        self.unfinished, self.alone, self.say, self.done = unfinished, processes.count == 1, say, done
        self.counted = time.monotonic()

    def __call__(self, made: int) -> None:
        if self.say is None:
            return
        if self.alone:
            self.done += made
        elif time.monotonic() - self.counted > _COUNT_SECONDS:
            self.done, self.counted = self.unfinished.count(), time.monotonic()
        self.say(self.done)


def tiles(ranges: Sequence[range], tile: int) -> Iterator[range]:
    """The images of `ranges` in batches that one tile of the network computes; see `generate`."""
    for each in ranges:
        start = each.start
        while start < each.stop:
            stop = min(each.stop, (start // tile + 1) * tile)
            yield range(start, stop)
            start = stop


def share(count: int, processes: Processes) -> tuple[int, int]:
    """Of `count` things in a row, the first that is this process's and the first that is not any more.

    Neighbours, so that they fill few files; as many as any other process has, or one less or more.
    """
    first, end = (count * (processes.rank + i) // processes.count for i in (0, 1))
    return first, end


def _make(
    denoiser: Denoiser,
    plan: Plan,
    shape: tuple[int, int, int],
    part: range,
    labels: Tensor | None,
    seed: int,
    batch_size: int,
    device: torch.device | str,
) -> Tensor:
    own = None if labels is None else labels[part.start : part.stop]
    batch_size = max(batch_size, len(part))  # never cut what one tile computes
    (images,) = generate(denoiser, plan, shape, part, seed=seed, labels=own, batch_size=batch_size, device=device)
    return images
