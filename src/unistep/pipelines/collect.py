"""All images of a run, over any number of processes."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.pipelines.generate import Plan, generate, tile_size

if TYPE_CHECKING:
    from accelerate import Accelerator


def collect(
    denoiser: Denoiser,
    plan: Plan,
    shape: tuple[int, int, int],
    num_images: int,
    labels: Int64[Tensor, " N"] | None,
    *,
    seed: int,
    batch_size: int,
    accelerator: "Accelerator | None" = None,
) -> UInt8[Tensor, "N C H W"] | None:
    """Images 0 to num_images - 1 in order; on processes other than the first, None.

    Every round each process makes about `batch_size` images, and they are gathered in process order.
    """
    processes = 1 if accelerator is None else accelerator.num_processes
    rank = 0 if accelerator is None else accelerator.process_index
    device = torch.device("cpu") if accelerator is None else accelerator.device
    if accelerator is None and isinstance(denoiser, torch.nn.Module):
        device = next(denoiser.parameters()).device
    tile = tile_size(shape, batch_size, device)

    def whole_tiles(images: int) -> int:
        return -(-images // tile) * tile

    parts = []
    with _progress(rank == 0) as progress:
        task = progress.add_task("sample", total=num_images)
        a_round = whole_tiles(batch_size) * processes
        for start in range(0, num_images, a_round):
            end = min(start + a_round, num_images)
            share = whole_tiles(-(-(end - start) // processes))
            own = range(min(start + rank * share, end), min(start + (rank + 1) * share, end))
            own_labels = None if labels is None else labels[own.start : own.stop]
            made = generate(denoiser, plan, shape, own, seed=seed, labels=own_labels, batch_size=share, device=device)
            batch = torch.cat([torch.zeros(0, *shape, dtype=torch.uint8), *made])
            if accelerator is not None:
                # All processes must hand over equally many; what the last ones lack comes last and is cut off.
                surplus = torch.zeros(share - len(batch), *shape, dtype=torch.uint8)
                batch = accelerator.gather(torch.cat([batch, surplus]).to(device)).cpu()  # pyright: ignore
            if rank == 0:
                parts.append(batch[: end - start])
            progress.update(task, completed=end)
    return torch.cat(parts) if rank == 0 else None


def _progress(active: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not (active and console.is_terminal), transient=True)
