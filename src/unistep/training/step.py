"""One step of training: noise, loss and gradients of a batch, and the update of weights and averages."""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unistep.core.parameterization import Preconditioned
from unistep.core.pixels import to_float
from unistep.core.random import KERNELS, ImageRandom
from unistep.data.dataset import ImageDataset
from unistep.networks.block import compile_blocks
from unistep.objectives.protocol import Objective
from unistep.training.batches import Batch, Batches
from unistep.training.compiled import compiled, compiled_kernels, draws_masks
from unistep.training.config import Compile, TrainerConfig
from unistep.training.engines import Engine
from unistep.training.recorded import Recorded
from unistep.training.skips import DeviceSkips
from unistep.training.state import TrainingState

_log = logging.getLogger("unistep")


class TrainingStep(TrainingState):
    """A training that makes steps.

    On a GPU a process waits for the device only where it must look at a number: a step that is not finite is skipped
    by the device itself, where the optimizer can (AdamW on whole networks) and nothing but the student is trained or
    averaged.

    A step trains one network, the student or the critic whose turn it is: the others have no gradient.

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
        compile: part that is compiled: "none", "network" or, with CUDA graphs, the whole step ("graph").
        engine: way in which the processes share the networks; None is whole networks.
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
        compile: Compile = "none",
        engine: Engine | None = None,
    ) -> None:
        super().__init__(folder, student, objective, config, accelerator, engine)
        device = accelerator.device
        self.dataset, self.seed, self.title = dataset, seed, title
        self.batches = Batches(dataset, device, seed=seed, flip=flip, use_labels=use_labels)
        alone = accelerator.num_processes == 1 and accelerator.scaler is None
        network = student.network if isinstance(student, Preconditioned) else student
        self._masks = draws_masks(network)
        self._kernels = KERNELS
        if compile != "none" and accelerator.num_processes == 1:
            self.model = compiled(self.student)
            self._kernels = compiled_kernels() if device.type == "cuda" else KERNELS
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and alone else None
        beside = bool(self.critics or objective.parameters() or objective.networks() or objective.phase_model(0))
        whole = not (beside or self.engine.sharded or accelerator.scaler)
        skipping = device.type == "cuda" and config.optimizer.name == "adamw" and whole
        self._skips = DeviceSkips(device) if skipping else None
        self._recorded: Recorded | None = None
        if compile == "graph" and self._skips is not None and self._stream is not None and not self._masks:
            self._recorded = Recorded(self._gradient, self.optimizer.zero_grad, self._stream)
        if compile != "none" and accelerator.num_processes > 1:
            # Block by block: the weights of a sharded network come and go between them.
            critics = [critic.network for critic in self.critics.values()]
            if not any([compile_blocks(one) for one in (self.student, *critics, *objective.networks().values())]):
                self._note("several processes compile blocks, and this network has none")
        if compile == "graph" and self._recorded is None:
            self._note("no graph is recorded, which takes one GPU, AdamW and a network without dropout")

    def train_step(self, step: int) -> tuple[Tensor, Tensor, float]:
        """Makes step number `step`, or skips it where a number is not finite.

        Args:
            step: number of the step, from 0.

        Returns:
            Its loss, the gradient's norm and the student's learning rate.
        """
        if self._stream is None:
            return self._step(step)
        # A recording needs a stream of its own, and the steps before it must run on it.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._step(step)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def settle(self) -> None:
        """Brings the counts of skipped steps and the sum of the losses up to date, where the device has them."""
        if self._skips is None or not self._skips.pending:
            return
        before = self.guard
        asked = self._skips.ask(before)
        self.guard = asked.guard
        self.losses.add(asked.loss, count=asked.taken)
        if (count := asked.guard.skipped - before.skipped) and not before.in_a_row:
            _log.warning("%s: %d of the steps before %d are skipped: not finite", self.title, count, self.step + 1)

    def _note(self, text: str) -> None:
        if self.accelerator.is_main_process:
            _log.info("%s: `compile`: %s", self.title, text)

    def _step(self, step: int) -> tuple[Tensor, Tensor, float]:
        c, accelerator = self.config, self.accelerator
        first, end = self._phase(step)
        rates = [own.lr_at(step - first, end - first) * self.guard.lr_factor for own in self.group_configs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        parts = self._parts(step)
        if self.objective.whole_batch and accelerator.num_processes * c.accumulation > 1:
            whole = [*parts]
            self._among(whole)
            parts = iter(whole)
        if c.accumulation == 1:
            total, norm, finite = self._recordable(step, next(parts))
        else:
            total = torch.zeros((), device=accelerator.device)
            for part, batch in enumerate(parts, 1):
                # Processes add up their gradients once, with the last part.
                last = part == c.accumulation
                with contextlib.nullcontext() if last else self.engine.unsynchronized(self.model):
                    total += self._passes(step, *batch.tensors, dropout_seed=batch.dropout_seed)
            norm, finite = self._norm(step, total)
        if self._skips is None:
            self._take(step, first, end, total, bool(finite))
        else:
            self._take_unasked(step, first, total, finite, self._skips)
        self.power_averages.update(self.student, step)
        return total, norm, rates[0]

    def _parts(self, step: int) -> Iterator[Batch]:
        """The parts of this process's share of the batch, each read when it is asked for."""
        c, accelerator = self.config, self.accelerator
        size = c.batch_size // (accelerator.num_processes * c.accumulation)
        first = accelerator.process_index * c.accumulation
        return (self.batches.at(step, c.batch_size, (first + i) * size, size) for i in range(c.accumulation))

    def _among(self, parts: Sequence[Batch]) -> None:
        """Hands the images of all processes to the objective; `parts` are those of this one."""
        images, labels = [part.images for part in parts], [part.labels for part in parts if part.labels is not None]
        of_all: Any = [self.accelerator.gather(torch.cat(own)) if own else None for own in (images, labels)]
        self.objective.among(to_float(of_all[0]), of_all[1])

    def _recordable(self, step: int, batch: Batch) -> tuple[Tensor, ...]:
        """Loss, norm and whether both are finite of a step whose batch is one part."""
        if self._recorded is not None:
            return self._recorded(self.objective.recorded(step), batch.tensors, step)
        return self._gradient(step, *batch.tensors, dropout_seed=batch.dropout_seed)

    def _gradient(self, step: int, *tensors: Tensor, dropout_seed: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        total = self._passes(step, *tensors, dropout_seed=dropout_seed)
        norm, finite = self._norm(step, total)
        return total, norm, finite

    def _passes(
        self, step: int, images: Tensor, words: Tensor, labels: Tensor | None = None, *, dropout_seed: int | None
    ) -> Tensor:
        """Adds the gradient of a part of the batch; returns the part's share of the loss."""
        accelerator = self.accelerator
        random = ImageRandom(words, accelerator.device, self._kernels)
        seed: Any = dropout_seed if self._masks else None
        with accelerator.autocast():
            losses = self.objective.loss(self.model, to_float(images), labels, step, random, seed)
        precise = torch.promote_types(losses.dtype, torch.float32)
        loss = losses.to(precise).mean() / self.config.accumulation
        accelerator.backward(loss)
        return loss.detach()

    def _norm(self, step: int, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of the gradient, which is then scaled to its limit, and whether it and the loss are finite."""
        trained = self.objective.trained(step)
        self.engine.rest(critic.network for critic in self.critics.values())
        network = self.student if trained is None else self.critics[trained].network
        config = self.config.optimizer if trained is None else self.critic_configs[trained]
        # The student is wrapped, and has those of all processes already.
        self.engine.average(self.objective.parameters() if trained is None else network.parameters())
        norm = self.engine.clip(network.parameters(), config.clip_grad_norm or math.inf)
        return norm, self._finite(loss, norm)

    def _take(self, step: int, first: int, end: int, total: Tensor, finite: bool) -> None:
        """Updates weights and averages where the numbers are finite."""
        self.guard = self.guard.after(finite)
        trained = self.objective.trained(step)
        if finite:
            self.optimizer.step()
            self.losses.add(total, trained)
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # a gradient that overflowed in fp16 lowers the scale
        self.optimizer.zero_grad()
        if not finite:
            self._tell_skipped(step, total)
            if step + 1 == end < self.config.steps:
                self.objective.after_step(self.student, step)  # the next phase begins with the weights as they are
        elif trained is None:
            self.objective.after_step(self.student, step)
            self.ema.update(self.student, step - first)

    def _take_unasked(self, step: int, first: int, total: Tensor, finite: Tensor, skips: DeviceSkips) -> None:
        """Updates weights and averages by an optimizer that skips the step itself; the host does not wait."""
        if not skips.pending:
            skips.begin(self.guard)
        optimizer: Any = self.optimizer
        optimizer.optimizer.found_inf = (~finite).float()
        optimizer.step()
        if self._recorded is None or not self._recorded.replaying:
            self.optimizer.zero_grad()
        self.ema.update(self.student, step - first, finite)
        skips.count(total, finite)

    def _finite(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether loss and gradients of a step are finite, on all processes."""
        beside = [p.grad.norm() for p in self.objective.parameters() if p.grad is not None]
        numbers = torch.stack([n.detach().float().to(loss.device) for n in (loss, norm, *beside)])
        finite = numbers.isfinite().all()
        if self.accelerator.num_processes > 1:
            return self.accelerator.reduce(finite.float(), "mean") == 1  # pyright: ignore
        return finite

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
