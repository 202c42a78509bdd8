"""The training loop. It knows a student, an objective and a dataset; of methods and networks it knows nothing.

All randomness is a pure function of (seed, step, position in the global batch): nothing random is carried from step
to step. So a resumed run equals the uninterrupted one, and image j of a step sees the same noise on any number of
processes and with any accumulation.
"""

import contextlib
import copy
import logging
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unistep.core.pixels import to_float
from unistep.core.random import ImageRandom, image_seed, image_seeds
from unistep.data.dataset import ImageDataset
from unistep.data.order import batch_flips, batch_indices
from unistep.errors import UserError
from unistep.files import write_error
from unistep.formats.checkpoint import remove_after, save_checkpoint
from unistep.objectives.protocol import Objective
from unistep.runtime.interrupt import Interrupted, StopRequest
from unistep.training.config import TrainerConfig
from unistep.training.ema import EMA
from unistep.training.evaluation import Best, Evaluation, better
from unistep.training.guard import Diverged, Guard
from unistep.training.log import RunLog
from unistep.training.optimizer import build_optimizer
from unistep.training.restore import newest_state, on_first

_log = logging.getLogger("unistep")

_FIRST_PREVIEW = 30.0  # seconds
_SAFE_LR = 1e-4  # most published models were trained with no more


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
        self.guard = Guard(lr=config.optimizer.lr)
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
        # Weights of the beginning, until there is a checkpoint to go back to.
        self._initial: dict[str, Any] | None = None
        # Since the last log line: the sum of the losses, and of how many steps.
        self.loss_sum, self.since = torch.zeros((), device=accelerator.device), 0

    def run(self) -> nn.Module:
        """Trains to the end and returns the student with the averaged weights, in eval mode.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
            Diverged: loss or gradient is not finite, however often the stage goes back.
            UserError: a checkpoint cannot be read or written.
        """
        self._restore()
        c = self.config
        main = self.accelerator.is_main_process
        started = last = time.monotonic()
        before, begun, timed = self.seconds, self.step, 0
        previewed = self.preview is None or any((self.folder / "samples").glob("*.png"))
        with StopRequest() as stop, RunLog(self.folder, self.title, c.steps, self.step, main, self.progress) as log:
            log.write_settings(self.settings)
            if self._due_preview() and not self._preview_path().exists():  # the run was killed before it
                self._preview(log)
            while self.step < c.steps:
                start, end = self._phase(self.step)
                if self.step == start > 0:
                    # A second optimizer would not do: accelerate keeps all it has prepared, and unscales with each.
                    self.optimizer.state.clear()
                    self.ema = EMA(self.student, c.ema_decays, c.ema_ramp)
                loss, norm, lr = self.train_step(self.step)
                if not self.guard.in_a_row:
                    self.loss_sum, self.since = self.loss_sum + loss, self.since + 1
                timed += 1
                self.step += 1
                self.seconds = before + time.monotonic() - started
                log.advance(self.step)
                if self.guard.in_a_row >= (c.max_skipped if self.step < c.steps else min(c.max_skipped, c.steps)):
                    self._roll_back(log)
                    continue
                if self.step % c.log_every == 0 or self.step == c.steps:
                    now = time.monotonic()
                    rate = timed * c.batch_size / max(now - last, 1e-9)
                    values = {"loss": self._mean_loss_sum().item() / self.since} if self.since else {}
                    values |= {"lr": lr, "images_per_second": rate, "seconds": self.seconds}
                    values |= {"images": float(self.step * c.batch_size), "grad_norm": float(norm)}
                    log.write(self.step, values | self.guard.scalars() | self.objective.scalars(self.step - 1))
                    self.loss_sum, self.since, timed, last = torch.zeros_like(self.loss_sum), 0, 0, now
                if self.phase_done and self.step == end:
                    self.phase_done(self.averaged(), self.step, self.seconds)
                due = self.step % c.checkpoint_every == 0 or self.step == c.steps
                if self.evaluation and self.evaluation.due(self.step, c.steps):
                    last += self._evaluate(self.evaluation, log)  # it is no time of training
                    due = True  # what was measured is not measured again, and the best model is the checkpoint's
                if due and not self._save():
                    self._roll_back(log)
                    continue
                if self._due_preview():
                    self._preview(log)
                    previewed = True
                elif not previewed and self._early(time.monotonic() - started, self.step - begun):
                    self._preview(log)
                    previewed = True
                # Asked after all that takes time, and in the last step too: a signal must not go unheard.
                if self._agree(stop.signal is not None):
                    if not due and not self._save():
                        self._roll_back(log)
                    raise Interrupted(stop.signal or signal.SIGTERM, self.step)
        if self.guard.skipped and main:
            last = f"; the last {self.guard.in_a_row} among them" if self.guard.in_a_row else ""
            _log.warning("%s: %d steps were skipped, of %d%s", self.title, self.guard.skipped, c.steps, last)
        return self.averaged()

    def _preview(self, log: RunLog) -> None:
        """Makes a grid of samples, on the first process."""
        if self.preview is not None and self.accelerator.is_main_process:
            path = self._preview_path()
            try:
                self.preview(self.averaged(), path)
            except UserError as error:  # of the images: training can do without them
                _log.warning("%s: no samples of step %d: %s", self.title, self.step, error)
            except OSError as error:
                raise write_error(path, error, "resume") from None
            if path.exists():
                log.write_samples(self.step, path)

    def _preview_path(self) -> Path:
        return self.folder / "samples" / f"step-{self.step:08d}.png"

    def _due_preview(self) -> bool:
        """Whether a grid belongs to the steps that are done."""
        done = self.step > 0 and (self.step % self.config.sample_every == 0 or self.step == self.config.steps)
        return done and self.preview is not None and self.accelerator.is_main_process

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
        try:
            score = evaluation.measure(self.averaged())
        except UserError as error:  # of the images, on all processes: training can do without the number
            if self.accelerator.is_main_process:
                _log.warning("%s: no evaluation of step %d: %s", self.title, self.step, error)
            return time.monotonic() - start
        if (best := better(score, self.step, self.best)) is not self.best:
            self.best, self.guard = best, replace(self.guard, best_in=self.guard.rollbacks)
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
        measured = self.best is not None and self.best.step == self.step and self.guard.best_in == self.guard.rollbacks
        if self.evaluation and self.best and measured and self.accelerator.is_main_process:
            self.evaluation.keep(self.averaged(), self.best, self.seconds)

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

    def averaged(self) -> nn.Module:
        """A copy of the student with the first average's weights, in eval mode."""
        model = copy.deepcopy(self.student).eval().requires_grad_(False)
        model.load_state_dict(self.ema.averages[self.config.ema_decays[0]])
        return model

    def _roll_back(self, log: RunLog) -> None:
        """Goes back to the last good checkpoint, or to the beginning where there is none yet.

        Raises:
            Diverged: it went back as often as it may.
        """
        c, guard, at = self.config, self.guard, self.step
        what = f"{guard.in_a_row} steps in a row were" if guard.in_a_row else "the weights are no numbers, which is"
        lr = c.optimizer.lr * guard.lr_factor
        if guard.rollbacks >= c.max_rollbacks:
            raise Diverged(
                f"{self.title} diverged by step {at}: loss or gradient is not finite, also at the learning rate {lr:g}",
                "go on with a lower one",
                min(lr / 10, _SAFE_LR),
            )
        seconds, best = self.seconds, self.best
        if self._initial is not None:
            self._begin_again(self._initial)
        else:
            state = newest_state(self.folder / "checkpoints", self.accelerator, good=guard.good)
            if state is None:
                raise UserError(f"{self.folder / 'checkpoints'} has no checkpoint any more", "resume")
            self._load(state)
        self.guard = replace(guard.rolled_back(c.rollback_lr), good=self.guard.good)
        self.seconds, self.best = seconds, best
        lr *= c.rollback_lr
        if self.accelerator.is_main_process:
            _log.warning(
                "%s: at step %d %s not finite; it goes back to step %d with the learning rate %g (%d of %d times)",
                *(self.title, at, what, self.step, lr, self.guard.rollbacks, c.max_rollbacks),
            )
        if self.step:
            self._save()
            on_first(self.accelerator, lambda: remove_after(self.folder / "checkpoints", self.step))
        log.rewind(self.step, {"lr": lr, "diverged_at": float(at)} | self.guard.scalars())

    def _mean_loss_sum(self) -> Tensor:
        """Over the processes."""
        return self.accelerator.reduce(self.loss_sum, "mean")  # pyright: ignore

    def _agree(self, stop: bool) -> bool:
        """True on every process if it is on one: all must leave the loop at the same step."""
        if self.accelerator.num_processes == 1:
            return stop
        flag = torch.tensor([float(stop)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)  # pyright: ignore

    def _save(self) -> bool:
        """Writes a checkpoint; not of weights that are no numbers, which would push out the last good one.

        Returns:
            Whether the weights are finite.
        """
        averages = self.ema.averages[self.config.ema_decays[0]].values()
        finite = [v.isfinite().all() for v in (*self.student.parameters(), *averages)]
        if not bool(torch.stack(finite).all()):
            return False
        if self.guard.in_a_row and self._initial is not None and self.step < self.config.steps:
            return True  # nothing good is there to go back to but the beginning, which no checkpoint must take over
        if not self.guard.in_a_row:
            self.guard = replace(self.guard, good=self.step)
        sums: Any = self.accelerator.gather(self.loss_sum[None])
        on_first(self.accelerator, lambda: self._write(sums))
        self._initial = None
        return True

    def _write(self, loss_sums: Tensor) -> None:
        keep = max(self.config.keep_checkpoints, 2)  # one is there where the newest is damaged
        # Of each process, so that as many processes log the same; their mean is for another number of them.
        state = self._state() | {"loss_sums": loss_sums, "loss_sum": loss_sums.mean()}
        save_checkpoint(self.folder / "checkpoints", self.step, state, keep, self.guard.good)
        self._keep_best()

    def _state(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "student": self.student.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            "since": self.since,
            "best": None if self.best is None else self.best.state_dict(),
            "guard": self.guard.state_dict(),
        }

    def _restore(self) -> None:
        state = newest_state(self.folder / "checkpoints", self.accelerator)
        if state is None:
            self._initial = {
                "student": _copy(self.student.state_dict()),
                "objective": _copy(self.objective.state_dict()),
            }
            if self.accelerator.scaler is not None:
                self._initial["scaler"] = self.accelerator.scaler.state_dict()
            return
        self._load(state)
        self._keep_best()

    def _begin_again(self, initial: dict[str, Any]) -> None:
        """Takes the place that `_restore` found where there was no checkpoint."""
        self.student.load_state_dict(initial["student"])
        self.objective.load_state_dict(initial["objective"])
        self.ema = EMA(self.student, self.config.ema_decays, self.config.ema_ramp)
        self.optimizer.state.clear()
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(initial["scaler"])
        self.step, self.since, self.loss_sum = 0, 0, torch.zeros_like(self.loss_sum)
        self.guard = replace(self.guard, good=None)

    def _load(self, state: dict[str, Any]) -> None:
        """Takes the place of a checkpoint.

        Raises:
            UserError: it is of another network.
        """
        try:
            self.student.load_state_dict(state["student"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.objective.load_state_dict(state["objective"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.step, self.seconds, self.since = state["step"], state["seconds"], state.get("since", 0)
            sums, accelerator = state.get("loss_sums", ()), self.accelerator
            own = len(sums) == accelerator.num_processes
            loss_sum = sums[accelerator.process_index] if own else state.get("loss_sum", self.loss_sum)
            self.loss_sum = loss_sum.to(accelerator.device)
            self.best = Best(**state["best"]) if state.get("best") else None
            self.guard = Guard(**state.get("guard", {})).with_lr(self.config.optimizer.lr)
        except (KeyError, ValueError, TypeError, RuntimeError):
            raise UserError(
                f"{self.folder} was trained with another network or other ema_decays; "
                f"choose another `output` or the settings in its config.yaml"
            ) from None


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in main memory."""
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
