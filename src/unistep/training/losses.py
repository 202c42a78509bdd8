"""The losses since the last line of the log: of the student, and of every critic by itself."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class Losses:
    """Sums of the losses of steps that were taken, and their counts, by the network that was trained.

    Args:
        critics: names of the critics; the student is None.
        device: device that trains.
    """

    def __init__(self, critics: Iterable[str], device: torch.device) -> None:
        self._places: dict[str | None, int] = {name: i for i, name in enumerate((None, *critics))}
        self.sums = torch.zeros(len(self._places), device=device)
        self.counts = [0] * len(self._places)

    def add(self, loss: Tensor, trained: str | None = None, count: int = 1) -> None:
        """Adds losses.

        Args:
            loss: their sum.
            trained: critic that was trained; None is the student.
            count: number of steps.
        """
        place = self._places[trained]
        self.sums[place] += loss
        self.counts[place] += count

    def clear(self) -> None:
        """Begins a new line."""
        self.sums = torch.zeros_like(self.sums)
        self.counts = [0] * len(self.counts)

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes: `loss` of the student, `loss/NAME` of a critic; none of what was not trained.

        Args:
            accelerator: the processes.
        """
        reduced: Any = accelerator.reduce(self.sums, "mean")
        sums: list[float] = reduced.tolist()
        found = zip(self._places, sums, self.counts, strict=True)
        return {_named("loss", name): total / count for name, total, count in found if count}

    def state_dict(self, accelerator: Accelerator) -> dict[str, Any]:
        """As a checkpoint keeps them: of each process, so that as many log the same, and their mean for other numbers.

        Args:
            accelerator: the processes, all of which come here.
        """
        gathered: Any = accelerator.gather(self.sums[None])
        return {"since": list(self.counts), "loss_sums": gathered, "loss_sum": gathered.mean(0)}

    def load_state_dict(self, state: Mapping[str, Any], accelerator: Accelerator) -> None:
        """Takes up `state_dict`, or that of a checkpoint without critics, whose sums are single numbers.

        Args:
            state: the checkpoint.
            accelerator: the processes.
        """
        since, sums = state.get("since", 0), state.get("loss_sums", ())
        own = len(sums) == accelerator.num_processes
        total = sums[accelerator.process_index] if own else state.get("loss_sum", torch.zeros(len(self.counts)))
        self.counts = list(since) if isinstance(since, list) else [since, *self.counts[1:]]
        self.sums = total.to(self.sums).reshape(-1).expand(len(self.counts)).clone()


def of_network(values: Mapping[str, float], trained: str | None) -> dict[str, float]:
    """Numbers of a step by name, those of a critic with its name.

    Args:
        values: numbers by name.
        trained: critic that was trained; None is the student.
    """
    return {_named(name, trained): value for name, value in values.items()}


def _named(name: str, trained: str | None) -> str:
    return name if trained is None else f"{name}/{trained}"
