"""All images of a run, over any number of processes."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.pipelines.generate import Plan, generate

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

    Every round each process makes one batch, and the batches are gathered in process order.
    """
    processes = 1 if accelerator is None else accelerator.num_processes
    rank = 0 if accelerator is None else accelerator.process_index
    device = "cpu" if accelerator is None else accelerator.device
    if accelerator is None and isinstance(denoiser, torch.nn.Module):
        device = next(denoiser.parameters()).device
    parts = []
    with _progress(rank == 0) as progress:
        task = progress.add_task("sample", total=num_images)
        for start in range(0, num_images, batch_size * processes):
            end = min(start + batch_size * processes, num_images)
            # The last round may be short; all processes make equally many images, the surplus is cut off.
            share = -(-(end - start) // processes)
            indices = [min(start + rank * share + j, num_images - 1) for j in range(share)]
            own = None if labels is None else labels[indices]
            batch = torch.cat(
                list(generate(denoiser, plan, shape, indices, seed=seed, labels=own, batch_size=share, device=device))
            )
            if accelerator is not None:
                batch = accelerator.gather(batch.to(device)).cpu()  # pyright: ignore
            if rank == 0:
                parts.append(batch[: end - start])
            progress.update(task, completed=end)
    return torch.cat(parts) if rank == 0 else None


def _progress(active: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not (active and console.is_terminal), transient=True)
