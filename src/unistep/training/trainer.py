"""The training loop. It knows a student, an objective and a dataset; of methods and networks it knows nothing.

All randomness is a pure function of (seed, step, position in the global batch): nothing random is carried from step
to step. So a resumed run equals the uninterrupted one, and image j of a step sees the same noise on any number of
processes and with any accumulation.
"""

import contextlib
import copy
import math
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unistep.core.pixels import to_float
from unistep.core.random import ImageRandom, image_seed
from unistep.data.dataset import ImageDataset
from unistep.data.order import batch_flips, batch_indices
from unistep.errors import UserError
from unistep.formats.checkpoint import load_checkpoint, save_checkpoint
from unistep.objectives.protocol import Objective
from unistep.runtime.interrupt import Interrupted, StopRequest
from unistep.training.config import TrainerConfig
from unistep.training.ema import EMA
from unistep.training.evaluation import Best, Evaluation, better
from unistep.training.log import RunLog
from unistep.training.optimizer import build_optimizer

_FIRST_PREVIEW = 30.0  # seconds


class Trainer:
    """Trains a model for a number of steps, from the newest checkpoint in its folder if there is one.

    Args:
        folder: folder of the stage, for checkpoints/, samples/, metrics.jsonl and tensorboard/.
        student: `Preconditioned` network that is trained, from the weights it has.
        objective: loss, and the networks beside the student.
        dataset: images and labels.
        config: length and pace.
        seed: seed of the order of the images, noise and dropout.
        accelerator: devices, processes and precision.
        use_labels: whether the network is given class labels.
        flip: whether half of the images are mirrored.
        preview: called with the averaged model and a path, to which it writes a sample grid; None makes none.
        phase_done: called with the averaged model, the number of steps and the seconds at the end of every phase.
        evaluation: measurement of the averaged model; None is none.
        title: name of the stage in the progress display.
        settings: settings of the stage by dotted name, for TensorBoard.
        progress: whether progress is shown on stderr.
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
        use_labels: bool = False,
        flip: bool = False,
        preview: Callable[[nn.Module, Path], None] | None = None,
        phase_done: Callable[[nn.Module, int, float], None] | None = None,
        evaluation: Evaluation | None = None,
        title: str = "train",
        settings: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> None:
        config.check_split(accelerator.num_processes)
        self.folder = folder
        self.config = config
        self.dataset = dataset
        self.objective = objective
        self.seed = seed
        self.accelerator = accelerator
        self.use_labels = use_labels
        self.flip = flip
        self.preview = preview
        self.phase_done = phase_done
        self.evaluation = evaluation
        self.best: Best | None = None
        self.title, self.settings, self.progress = title, settings or {}, progress
        self.student = student.to(accelerator.device).train()
        self.ema = EMA(self.student, config.ema_decays, config.ema_ramp)
        beside = objective.parameters()
        for p in beside:
            p.data = p.data.to(accelerator.device)
        groups: list[dict[str, Any]] = [{"params": list(self.student.parameters())}]
        if beside:
            groups.append({"params": beside, "weight_decay": 0.0})
        # Accelerate's wrapper unscales fp16 gradients and skips the steps in which they overflowed.
        self.optimizer = accelerator.prepare_optimizer(build_optimizer(config.optimizer, groups))
        self.model = accelerator.prepare_model(self.student)
        self.step = 0
        self.seconds = 0.0
        # Since the last log line: the sum of the losses, and of how many steps.
        self.loss_sum, self.since = torch.zeros((), device=accelerator.device), 0

    def run(self) -> nn.Module:
        """Trains to the end and returns the student with the averaged weights, in eval mode.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
            UserError: the loss is not finite, or a checkpoint cannot be read or written.
        """
        self._restore()
        c = self.config
        main = self.accelerator.is_main_process
        started = last = time.monotonic()
        before, begun, timed = self.seconds, self.step, 0
        previewed = self.preview is None or any((self.folder / "samples").glob("*.png"))
        with StopRequest() as stop, RunLog(self.folder, self.title, c.steps, self.step, main, self.progress) as log:
            log.write_settings(self.settings)
            while self.step < c.steps:
                start, end = self._phase(self.step)
                if self.step == start > 0:
                    # A second optimizer would not do: accelerate keeps all it has prepared, and unscales with each.
                    self.optimizer.state.clear()
                    self.ema = EMA(self.student, c.ema_decays, c.ema_ramp)
                loss, norm, lr = self.train_step(self.step)
                self.loss_sum, self.since, timed = self.loss_sum + loss, self.since + 1, timed + 1
                self.step += 1
                self.seconds = before + time.monotonic() - started
                log.advance(self.step)
                if self.step % c.log_every == 0 or self.step == c.steps:
                    mean = self._mean_loss_sum().item() / self.since
                    self._check_finite(mean)
                    now = time.monotonic()
                    rate = timed * c.batch_size / max(now - last, 1e-9)
                    values = {"loss": mean, "lr": lr, "images_per_second": rate, "seconds": self.seconds}
                    values |= {"images": float(self.step * c.batch_size), "grad_norm": float(norm)}
                    log.write(self.step, values | self.objective.scalars(self.step - 1))
                    self.loss_sum, self.since, timed, last = torch.zeros_like(self.loss_sum), 0, 0, now
                if self.phase_done and self.step == end:
                    self.phase_done(self.averaged(), self.step, self.seconds)
                due = self.step % c.checkpoint_every == 0 or self.step == c.steps
                if self.evaluation and self.evaluation.due(self.step, c.steps):
                    last += self._evaluate(self.evaluation, log)  # it is no time of training
                    due = True  # what was measured is not measured again, and the best model is the checkpoint's
                if due:
                    self._save()
                if self.step % c.sample_every == 0 or self.step == c.steps:
                    self._preview(log)
                    previewed = True
                elif not previewed and self._early(time.monotonic() - started, self.step - begun):
                    self._preview(log)
                    previewed = True
                # Asked after all that takes time, and in the last step too: a signal must not go unheard.
                if self._agree(stop.signal is not None):
                    if not due:
                        self._save()
                    raise Interrupted(stop.signal or signal.SIGTERM, self.step)
        return self.averaged()

    def _preview(self, log: RunLog) -> None:
        """Makes a grid of samples, on the first process."""
        if self.preview is not None and self.accelerator.is_main_process:
            path = self.folder / "samples" / f"step-{self.step:08d}.png"
            self.preview(self.averaged(), path)
            if path.exists():
                log.write_samples(self.step, path)

    def _early(self, seconds: float, steps: int) -> bool:
        """Whether a first grid is due because the regular one would let people wait for more than a minute.

        Args:
            seconds: time since the run began.
            steps: number of steps in that time.
        """
        every = self.config.sample_every
        left = min(every - self.step % every, self.config.steps - self.step)
        return seconds > _FIRST_PREVIEW and left * seconds / steps > _FIRST_PREVIEW

    def _evaluate(self, evaluation: Evaluation, log: RunLog) -> float:
        """Measures the averaged model; returns the seconds that it took."""
        log.say("evaluating")
        start = time.monotonic()
        score = evaluation.measure(self.averaged())
        self.best = better(score, self.step, self.best)
        seconds, name, (low, high) = time.monotonic() - start, evaluation.name, score.interval
        values = {name: score.value, f"{name}/low": low, f"{name}/high": high, f"{name}/seconds": seconds}
        best = f" (best {self.best.value:.4g} at {self.best.step})" if self.best else ""
        log.write_evaluation(self.step, values, f"{name} {score}{best}")
        return seconds

    def _keep_best(self) -> None:
        """Saves the best model where it is the one of now: always after the checkpoint that records it.

        So the model that is kept is always the one that the newest checkpoint names: where a kill comes between the
        two, it is saved when the run goes on.
        """
        if self.evaluation and self.best and self.best.step == self.step and self.accelerator.is_main_process:
            self.evaluation.keep(self.averaged(), self.best, self.seconds)

    def train_step(self, step: int) -> tuple[Tensor, Tensor, float]:
        """Makes step number `step`; returns its loss, the gradient's norm and the learning rate."""
        c, accelerator = self.config, self.accelerator
        first, end = self._phase(step)
        lr = c.optimizer.lr_at(step - first, end - first)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        images = batch_indices(step, c.batch_size, len(self.dataset), self.seed)
        flips = batch_flips(step, c.batch_size, self.seed) if self.flip else None
        seeds = [image_seed(image_seed(self.seed, step), j) for j in range(c.batch_size)]
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
                    losses = self.objective.loss(self.model, x, labels, step, random, seeds[start])
                loss = losses.float().mean() / c.accumulation
                accelerator.backward(loss)
            total += loss.detach()
        self._average_gradients(self.objective.parameters())
        limit = c.optimizer.clip_grad_norm or math.inf
        norm = torch.as_tensor(accelerator.clip_grad_norm_(self.student.parameters(), limit))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.after_step(self.student, step)
        self.ema.update(self.student, step - first)
        return total, norm, lr

    def _phase(self, step: int) -> tuple[int, int]:
        """The steps [start, end) that train as one with `step`."""
        start, end = self.objective.phase(step)
        return start, self.config.steps if end is None else end

    def _average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Over the processes, of what is trained beside the wrapped student."""
        for p in parameters if self.accelerator.num_processes > 1 else ():
            if p.grad is not None:
                p.grad = self.accelerator.reduce(p.grad, "mean")  # pyright: ignore

    def averaged(self) -> nn.Module:
        """A copy of the student with the first average's weights, in eval mode."""
        model = copy.deepcopy(self.student).eval().requires_grad_(False)
        model.load_state_dict(self.ema.averages[self.config.ema_decays[0]])
        return model

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"{self.title}: the loss became {loss} by step {self.step}; lower optimizer.lr or set "
                f"optimizer.clip_grad_norm, and start again from the last checkpoint in {self.folder / 'checkpoints'}"
            )

    def _mean_loss_sum(self) -> Tensor:
        """Over the processes."""
        return self.accelerator.reduce(self.loss_sum, "mean")  # pyright: ignore

    def _agree(self, stop: bool) -> bool:
        """True on every process if it is on one: all must leave the loop at the same step."""
        if self.accelerator.num_processes == 1:
            return stop
        flag = torch.tensor([float(stop)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)  # pyright: ignore

    def _save(self) -> None:
        """Writes a checkpoint; not of weights that are no numbers, which would push out the last good one."""
        loss_sum = self._mean_loss_sum()
        if not all(bool(p.isfinite().all()) for p in self.student.parameters()):
            self._check_finite(math.nan)
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "seconds": self.seconds,
                "student": self.student.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "objective": self.objective.state_dict(),
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
                "loss_sum": loss_sum,
                "since": self.since,
                "best": None if self.best is None else self.best.state_dict(),
            }
            save_checkpoint(self.folder / "checkpoints", self.step, state, self.config.keep_checkpoints)
            self._keep_best()
        self.accelerator.wait_for_everyone()

    def _restore(self) -> None:
        state = load_checkpoint(self.folder / "checkpoints")
        if state is None:
            return
        try:
            self.student.load_state_dict(state["student"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.objective.load_state_dict(state["objective"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.step, self.seconds, self.since = state["step"], state["seconds"], state.get("since", 0)
            self.loss_sum = state.get("loss_sum", self.loss_sum).to(self.accelerator.device)
            self.best = Best(**state["best"]) if state.get("best") else None
        except (KeyError, ValueError, RuntimeError):
            raise UserError(
                f"{self.folder} was trained with another network or other ema_decays; "
                f"choose another `output` or the settings in its config.yaml"
            ) from None
        self._keep_best()
