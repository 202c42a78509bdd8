"""The training loop. It knows a student, an objective and a dataset; of methods and networks it knows nothing.

All randomness is a pure function of (seed, step, position in the global batch): nothing random is carried from step
to step. So a resumed run equals the uninterrupted one, and image j of a step sees the same noise on any number of
processes and with any accumulation.
"""

import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from unistep.data.dataset import ImageDataset
from unistep.errors import UserError
from unistep.files import write_error
from unistep.formats.checkpoint import remove_after
from unistep.formats.snapshots import FOLDER as SNAPSHOTS
from unistep.formats.snapshots import remove_snapshots_after, write_snapshot
from unistep.objectives.protocol import Objective
from unistep.runtime.interrupt import Interrupted, StopRequest
from unistep.runtime.stalls import Watch
from unistep.training.agreement import Agreement
from unistep.training.compiled import gpu_arithmetic
from unistep.training.config import Compile, TrainerConfig
from unistep.training.engines import Engine
from unistep.training.evaluation import Evaluation, better
from unistep.training.guard import Diverged
from unistep.training.limits import NO_LIMITS, Limits
from unistep.training.log import RunLog
from unistep.training.losses import of_network
from unistep.training.previews import Previews
from unistep.training.restore import newest_state, on_first
from unistep.training.saving import CheckpointWriter
from unistep.training.step import TrainingStep
from unistep.training.trackers import Trackers

_log = logging.getLogger("unistep")

_SAFE_LR = 1e-4  # most published models were trained with no more


class Trainer(TrainingStep):
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
        trackers: services that follow the stage; None is none.
        progress: whether progress is shown on stderr.
        deadline: time of `time.monotonic` after which no further step begins; the step under way is finished, and a
            checkpoint written. None is none.
        compile: part that is compiled: "none", "network" or, with CUDA graphs, the whole step ("graph").
        engine: way in which the processes share the networks; None is whole networks.
        limits: times after which the process ends by itself.
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
        trackers: Trackers | None = None,
        progress: bool = True,
        deadline: float | None = None,
        compile: Compile = "none",
        engine: Engine | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        config.check_split(accelerator.num_processes)
        super().__init__(
            folder,
            student,
            objective,
            dataset,
            config,
            seed=seed,
            accelerator=accelerator,
            use_labels=use_labels,
            flip=flip,
            title=title,
            compile=compile,
            engine=engine,
        )
        self.previews = Previews(folder / "samples", config.steps, config.sample_every, preview)
        self.phase_done, self.evaluation = phase_done, evaluation
        self.settings, self.progress, self.deadline = settings or {}, progress, deadline
        self.trackers = trackers
        # Weights of the beginning, until there is a checkpoint to go back to.
        self._initial: dict[str, Any] | None = None
        self.limits = limits
        self._agreement = Agreement(accelerator)
        keep = max(config.keep_checkpoints, 2)  # one is there where the newest is damaged
        self._checkpoints = CheckpointWriter(folder / "checkpoints", keep, accelerator, self.engine)

    def run(self) -> nn.Module:
        """Trains to the end, or until the time is up, and returns the student with the averaged weights, in eval mode.

        The time was up where `step` is less than the length of the stage.

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
        previewed = self.previews.none or self.previews.any_there
        fast = self.accelerator.mixed_precision != "no"
        processes = self.accelerator.process_index, self.accelerator.num_processes
        with (
            Watch(self.limits.stall_seconds, *processes, self.batches) as watch,
            self._checkpoints,
            StopRequest(lambda heard: self.limits.announce(watch, heard)) as stop,
            RunLog(self.folder, self.title, c.steps, self.step, main, self.progress, self.trackers) as log,
            gpu_arithmetic(self.accelerator.device, fast),
        ):
            log.write_settings(self.settings)
            previews = self.previews
            if self._on_first(lambda: previews.due(self.step) and not previews.path(self.step).exists()):
                self._preview(log)  # the run was killed before it
            self._measure_again(log)
            while self.step < c.steps:
                watch.at(self.step)
                start, end = self._phase(self.step)
                if self.step == start > 0:
                    # A second optimizer would not do: accelerate keeps all it has prepared, and unscales with each.
                    self.optimizer.state.clear()
                    self._begin_averages()
                _, norm, lr = self.train_step(self.step)
                timed += 1
                self.step += 1
                if self.step % min(c.log_every, c.max_skipped) == 0 or self.step == c.steps:
                    self.settle()
                self.seconds = before + time.monotonic() - started
                log.advance(self.step)
                if self.guard.in_a_row >= (c.max_skipped if self.step < c.steps else min(c.max_skipped, c.steps)):
                    self._roll_back(log)
                    continue
                if self.step % c.log_every == 0 or self.step == c.steps:
                    now = time.monotonic()
                    rate = timed * c.batch_size / max(now - last, 1e-9)
                    values = self.losses.means(self.accelerator)
                    values |= {"lr": lr, "images_per_second": rate, "seconds": self.seconds}
                    values |= {"images": float(self.step * c.batch_size)}
                    values |= of_network({"grad_norm": float(norm)}, self.objective.trained(self.step - 1))
                    log.write(self.step, values | self.guard.scalars() | self.objective.scalars(self.step - 1))
                    timed, last = 0, now
                    self.losses.clear()
                if self.step == end:
                    self._end_phase()
                due = self.step % c.checkpoint_every == 0 or self.step == c.steps
                if self.evaluation and self.evaluation.due(self.step, c.steps):
                    due = True  # what was measured is not measured again, and the best model is the checkpoint's
                    self.unmeasured = self._agreement.any(stop.signal is not None)[0]
                    if not self.unmeasured:  # else there is no time: the resumed run does it
                        last += self._evaluate(self.evaluation, log)  # it is no time of training
                if c.ema_lengths and (self.step % c.snapshot_every == 0 or self.step == end):
                    self._write_snapshot()
                if due and not self._save():
                    self._roll_back(log)
                    continue
                since = time.monotonic() - started, self.step - begun
                shown = previews.due(self.step) or (not previewed and previews.early(self.step, *since))
                if self._on_first(lambda: shown and stop.signal is None):  # noqa: B023
                    self._preview(log)
                    previewed = True
                # Asked after all that takes time, and in the last step too: a signal must not go unheard.
                # All must leave the loop at the same step.
                stopped, over, failed = self._agreement.any(
                    stop.signal is not None, self._time_is_up(), self._checkpoints.failed()
                )
                if failed:
                    self._checkpoints.wait()
                if stopped or (over and self.step < c.steps):
                    if not due and not self._save():
                        self._roll_back(log)
                    if stopped:
                        self._checkpoints.wait()
                        raise Interrupted(stop.signal or signal.SIGTERM, self.step)
                    break
            self._checkpoints.wait()
        if self.guard.skipped and main:
            last = f"; the last {self.guard.in_a_row} among them" if self.guard.in_a_row else ""
            _log.warning("%s: %d steps were skipped, of %d%s", self.title, self.guard.skipped, c.steps, last)
        return self.averaged()

    def _preview(self, log: RunLog) -> None:
        """Makes a grid of samples, on the first process."""
        model = self._averaged_on_first()
        if self.previews.make is not None and model is not None:
            path = self.previews.path(self.step)
            try:
                self.previews.make(model, path)
            except UserError as error:  # of the images: training can do without them
                _log.warning("%s: no samples of step %d: %s", self.title, self.step, error)
            except OSError as error:
                raise write_error(path, error, "resume") from None
            if path.exists():
                log.write_samples(self.step, path)

    def _averaged_on_first(self) -> nn.Module | None:
        """The averaged model, on the first process; all come here where networks are parted."""
        needed = self.accelerator.is_main_process or self.engine.sharded
        model = self.averaged() if needed else None
        return model if self.accelerator.is_main_process else None

    def _on_first(self, ask: Callable[[], bool]) -> bool:
        """Whether something is so on the first process: for all, where what follows needs all of them."""
        said = self.accelerator.is_main_process and ask()
        return self._agreement.any(said)[0] if self.engine.sharded else said

    def _end_phase(self) -> None:
        """Leaves the model of a phase that has ended, where the method has phases."""
        if self.phase_done is not None and (model := self._averaged_on_first()) is not None:
            self.phase_done(model, self.step, self.seconds)

    def _measure_again(self, log: RunLog) -> None:
        """Makes the evaluation that a signal left no time for."""
        if self.evaluation and self.unmeasured:
            self.unmeasured = False
            self._evaluate(self.evaluation, log)
            self._save()

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

    def _best_of_now(self) -> nn.Module | None:
        """The averaged model where it is the best one, on the first process."""
        measured = self.best is not None and self.best.step == self.step and self.guard.best_in == self.guard.rollbacks
        return self._averaged_on_first() if self.evaluation and measured else None

    def _keep_best(self, model: nn.Module | None) -> Callable[[], None]:
        """Saves the best model where it is the one of now: always after the checkpoint that records it.

        So the model that is kept is always the one that the newest checkpoint names: where a kill comes between the
        two, it is saved when the run goes on.

        Args:
            model: the best model; None where it is not the one of now.

        Returns:
            A function that does it, beside training.
        """
        evaluation, best, seconds = self.evaluation, self.best, self.seconds

        def keep() -> None:
            if evaluation and best and model is not None:
                evaluation.keep(model, best, seconds)

        return keep

    def _roll_back(self, log: RunLog) -> None:
        """Goes back to the last good checkpoint, or to the beginning where there is none yet.

        Raises:
            Diverged: it went back as often as it may.
        """
        self._checkpoints.wait()
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
            state = self._read(good=guard.good)
            if state is None:
                raise UserError(f"{self.folder / 'checkpoints'} has no checkpoint any more", "resume")
            self._load(state)
        self.guard = replace(guard.rolled_back(c.rollback_lr), good=self.guard.good)
        self.seconds, self.best = seconds, best
        on_first(self.accelerator, lambda: remove_snapshots_after(self.folder / SNAPSHOTS, self.step))
        lr *= c.rollback_lr
        if self.accelerator.is_main_process:
            _log.warning(
                "%s: at step %d %s not finite; it goes back to step %d with the learning rate %g (%d of %d times)",
                *(self.title, at, what, self.step, lr, self.guard.rollbacks, c.max_rollbacks),
            )
        if self.step:
            self._save()
            self._checkpoints.wait()
            on_first(self.accelerator, lambda: remove_after(self.folder / "checkpoints", self.step))
        log.rewind(self.step, {"lr": lr, "diverged_at": float(at)} | self.guard.scalars())

    def _time_is_up(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _save(self) -> bool:
        """Writes a checkpoint; not of weights that are no numbers, which would push out the last good one.

        Returns:
            Whether the weights are finite.
        """
        self.settle()
        if not self._finite_weights():
            return False
        if self.guard.in_a_row and self._initial is not None and self.step < self.config.steps:
            return True  # nothing good is there to go back to but the beginning, which no checkpoint must take over
        if not self.guard.in_a_row:
            self.guard = replace(self.guard, good=self.step)
        state = self._state() | self.engine.snapshot(self.losses.state_dict(self.accelerator))
        self._checkpoints.begin(self.step, state, self.guard.good, self._keep_best(self._best_of_now()))
        self._initial = None
        return True

    def _read(self, good: int | None = None) -> dict[str, Any] | None:
        """The state of the newest checkpoint, or of that of step `good`; None where there is none."""
        return newest_state(self.folder / "checkpoints", self.accelerator, own=self._own, good=good)

    def _write_snapshot(self) -> None:
        own = self.power_averages
        averages = self.engine.whole(own.averages)
        on_first(self.accelerator, lambda: write_snapshot(self.folder / SNAPSHOTS, self.step, own.begun, averages))

    def _restore(self) -> None:
        state = self._read()
        if state is None:
            self._initial = self._beginning()
        else:
            self._load(state)
            self._keep_best(self._best_of_now())()
        on_first(self.accelerator, lambda: remove_snapshots_after(self.folder / SNAPSHOTS, self.step))
