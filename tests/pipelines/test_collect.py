from types import SimpleNamespace

import pytest
import torch

from unistep.pipelines.collect import collect
from unistep.pipelines.generate import ConsistencyPlan, generate

SHAPE = (1, 4, 4)
PLAN = ConsistencyPlan((80.0, 0.8))


def denoiser(x, sigma, labels=None):
    return torch.tanh(x if labels is None else x + labels[:, None, None, None])


def run_on(processes: int, num_images: int, batch_size: int, labels) -> list:
    """`collect` on each of several processes, one after the other; "gather" plays the collective."""
    sent = []

    def on(rank):
        rounds = iter(range(1000))

        def gather(batch):
            sent[rank].append(batch)
            n = next(rounds)
            # Only process 0 needs what the others made; it runs last.
            return torch.cat([sent[other][n] for other in range(processes)]) if rank == 0 else batch

        accelerator = SimpleNamespace(
            num_processes=processes, process_index=rank, device=torch.device("cpu"), gather=gather
        )
        return collect(
            denoiser, PLAN, SHAPE, num_images, labels, seed=2, batch_size=batch_size, accelerator=accelerator
        )

    sent = [[] for _ in range(processes)]
    return [on(rank) for rank in reversed(range(processes))][::-1]


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("num_images", [1, 16, 41])
def test_any_number_of_processes(num_images, batch_size, labelled):
    labels = torch.arange(num_images) % 3 if labelled else None
    (expected,) = generate(denoiser, PLAN, SHAPE, range(num_images), seed=2, labels=labels, batch_size=num_images)
    alone = collect(denoiser, PLAN, SHAPE, num_images, labels, seed=2, batch_size=batch_size)
    assert torch.equal(alone, expected)
    for processes in (1, 2, 3):
        first, *others = run_on(processes, num_images, batch_size, labels)
        assert torch.equal(first, expected)
        assert others == [None] * (processes - 1)


def test_work_is_shared():
    """No process makes more than its share, rounded up to whole tiles."""
    made = []

    def counting(x, sigma, labels=None):
        made.append(len(x))
        return denoiser(x, sigma)

    accelerator = SimpleNamespace(num_processes=2, process_index=1, device=torch.device("cpu"), gather=lambda x: x)
    collect(counting, PLAN, SHAPE, 60, None, seed=0, batch_size=64, accelerator=accelerator)
    assert sum(made) == 32 * PLAN.nfe
