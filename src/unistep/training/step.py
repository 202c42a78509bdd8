"""One step of training: noise, loss and gradients of a batch, and the update of weights and averages."""

import contextlib
import logging
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unistep.core.pixels import to_float
from unistep.core.random import ImageRandom, image_seed, image_seeds
from unistep.data.dataset import ImageDataset
from unistep.data.order import batch_flips, batch_indices
from unistep.objectives.protocol import Objective
from unistep.training.config import TrainerConfig
from unistep.training.state import TrainingState

_log = logging.getLogger("unistep")


class TrainingStep(TrainingState):
    """A training that makes steps.

    Args:
        folder: folder of the stage.
        student: `Preconditioned` network that is trained, from the weights it has.
        objective: loss, and the networks beside the student.
        dataset: images and labels.
        config: length and pace.
        seed: seed of the order of the images, noise and dropout.
        accelerator: devices, processes and precision.
        use_labels: whether the network is given class labels.
        flip: whether half of the images are mirrored.
        title: name of the stage in the progress display.
    """

    def __init__(
        self,
        folder: Path,
        student: nn.Module,
        objective: Objective,
        dataset: ImageDataset,
        config: TrainerConfig,
        *,
        seed: int,
        accelerator: Accelerator,
        use_labels: bool,
        flip: bool,
        title: str,
    ) -> None:
        super().__init__(folder, student, objective, config, accelerator)
        self.dataset, self.seed, self.use_labels, self.flip, self.title = dataset, seed, use_labels, flip, title

    def train_step(self, step: int) -> tuple[Tensor, Tensor, float]:
        """Makes step number `step`, or skips it where a number is not finite.

        Args:
            step: number of the step, from 0.

        Returns:
            Its loss, the gradient's norm and the learning rate.
        """
        c, accelerator = self.config, self.accelerator
        first, end = self._phase(step)
        lr = c.optimizer.lr_at(step - first, end - first) * self.guard.lr_factor
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        images = batch_indices(step, c.batch_size, len(self.dataset), self.seed)
        flips = batch_flips(step, c.batch_size, self.seed) if self.flip else None
        seeds = image_seeds(image_seed(self.seed, step), range(c.batch_size))
        size = c.batch_size // (accelerator.num_processes * c.accumulation)
        total = torch.zeros((), device=accelerator.device)
        for part in range(c.accumulation):
            start = (accelerator.process_index * c.accumulation + part) * size
            mine = slice(start, start + size)
            x, labels = self.dataset.batch(images[mine], None if flips is None else flips[mine])
            x = to_float(x.to(accelerator.device))
            labels = labels.to(accelerator.device) if self.use_labels and labels is not None else None
            random = ImageRandom(seeds[mine], accelerator.device)
            # Processes add up their gradients once, with the last part.
            last = part == c.accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    losses = self.objective.loss(self.model, x, labels, step, random, int(seeds[start]))
                loss = losses.float().mean() / c.accumulation
                accelerator.backward(loss)
            total += loss.detach()
        self._average_gradients(self.objective.parameters())
        limit = c.optimizer.clip_grad_norm or math.inf
        norm = torch.as_tensor(accelerator.clip_grad_norm_(self.student.parameters(), limit))
        self.guard = self.guard.after(self._finite(total, norm))
        if not self.guard.in_a_row:
            self.optimizer.step()
        elif accelerator.scaler is not None:
            accelerator.scaler.update()  # a gradient that overflowed in fp16 lowers the scale
        self.optimizer.zero_grad()
        if self.guard.in_a_row:
            self._tell_skipped(step, total)
            if step + 1 == end < c.steps:
                self.objective.after_step(self.student, step)  # the next phase begins with the weights as they are
        else:
            self.objective.after_step(self.student, step)
            self.ema.update(self.student, step - first)
        return total, norm, lr

    def _finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether loss and gradients of a step are finite, on all processes: the one number a step waits for."""
        beside = [p.grad.norm() for p in self.objective.parameters() if p.grad is not None]
        numbers = torch.stack([n.detach().float().to(loss.device) for n in (loss, norm, *beside)])
        finite = numbers.isfinite().all()
        if self.accelerator.num_processes > 1:
            return bool(self.accelerator.reduce(finite.float(), "mean") == 1)
        return bool(finite)

    def _tell_skipped(self, step: int, loss: Tensor) -> None:
        """Names the first of several skipped steps; the scale of fp16 settles in some without a word."""
        quiet = self.accelerator.scaler is not None and bool(loss.isfinite())
        if self.guard.in_a_row == 1 and not quiet and self.accelerator.is_main_process:
            what = "gradient" if bool(loss.isfinite()) else "loss"
            _log.warning("%s: the %s of step %d is not finite; the step is skipped", self.title, what, step + 1)

    def _phase(self, step: int) -> tuple[int, int]:
        """The steps [start, end) that train as one with `step`."""
        start, end = self.objective.phase(step)
        return start, self.config.steps if end is None else end

    def _average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Over the processes, of what is trained beside the wrapped student."""
        for p in parameters if self.accelerator.num_processes > 1 else ():
            if p.grad is not None:
                p.grad = self.accelerator.reduce(p.grad, "mean")  # pyright: ignore
