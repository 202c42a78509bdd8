"""One stage of a run: trained from where it is to its end, or as far as the time goes.

It ends in its `model/` folder; one that the time was up for has the model that it has come to there. Where the stage is
measured in training, its best model is in `best/`. A method of phases leaves a model of every phase too, as
`model-8-steps/`.
"""

import logging
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn

from unistep.config import RunConfig, StageConfig, dump
from unistep.config.resolve import to_values
from unistep.config.values import leaves
from unistep.core.parameterization import Preconditioned
from unistep.data import ImageDataset
from unistep.data.bundled import BUNDLED
from unistep.data.published import SOURCES
from unistep.errors import UserError
from unistep.files import write_error
from unistep.formats.checkpoint import checkpoint_path, checkpoint_steps
from unistep.formats.model import LoadedModel, ModelInfo, image_shape, num_classes
from unistep.formats.model_folder.card import Training, model_card
from unistep.formats.model_folder.files import INDEX
from unistep.formats.model_folder.folder import save_model, write_outline
from unistep.formats.run_directory import OUTLINE
from unistep.generation.generate import generate
from unistep.generation.plan import default_plan
from unistep.images.grid import save_grid
from unistep.networks.block import compile_blocks
from unistep.objectives.protocol import Objective
from unistep.training.compiled import compiled
from unistep.training.engines import build_engine
from unistep.training.evaluation import Evaluation
from unistep.training.guard import Diverged
from unistep.training.limits import NO_LIMITS, Limits
from unistep.training.restore import on_first
from unistep.training.trackers import Trackers
from unistep.training.trainer import Trainer
from unistep.workflows.runs.build import build_model, build_objective, open_perceptual
from unistep.workflows.runs.design import StageDesign
from unistep.workflows.runs.evaluation import TrainingEvaluation
from unistep.workflows.runs.repair import clean_stage, damage_of, make_room

_log = logging.getLogger("unistep")

Outcome = Literal["trained", "finished before", "unfinished"]
"""Outcome of a stage: in the end it is trained, it was so before, or the time is up."""


def stage_settings(config: RunConfig, stage: StageConfig) -> dict[str, Any]:
    """The settings that a stage trains with, by dotted name without the stage's."""
    values = to_values(config)
    own = values.pop("stages")[stage.name]
    return dict(leaves({key: value for key, value in values.items() if key not in ("description", "lpips")} | own))


class StageRun:
    """One stage of a run.

    Args:
        config: run.
        design: stage.
        folder: folder of the run.
        accelerator: devices, processes and precision.
        dataset: images and labels.
        evaluation: measurement of the last stage; None where there is none.
        progress: whether to show how far it is.
        deadline: time of `time.monotonic` after which no further step begins; None is none.
        limits: times after which the process ends by itself.
    """

    def __init__(
        self,
        config: RunConfig,
        design: StageDesign,
        folder: Path,
        accelerator: Accelerator,
        dataset: ImageDataset,
        evaluation: TrainingEvaluation | None,
        progress: bool,
        deadline: float | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.config, self.design, self.stage, self.info = config, design, design.stage, design.info
        self.run_folder, self.folder = folder, folder / design.stage.name
        self.model, self.deadline, self.limits = self.folder / "model", deadline, limits
        self.accelerator, self.dataset, self.evaluation, self.progress = accelerator, dataset, evaluation, progress

    def run(self, init: LoadedModel | None, teacher: LoadedModel | None) -> Outcome:
        """Trains what is left of the stage, as far as the time goes.

        Args:
            init: model that it begins from.
            teacher: model that teaches it.

        Raises:
            UserError: it diverged, or its files cannot be read or written.
        """
        main, stage, model = self.accelerator.is_main_process, self.stage, self.model
        finished, done = on_first(self.accelerator, self.look)
        if finished:
            self.say(f"{stage.name}: finished before, {model}")
            return "finished before"
        trainer = self.trainer(init, teacher)
        on_first(self.accelerator, lambda: self.outline(trainer.outline, trainer.objective, done))
        try:
            averaged = trainer.run()
        except Diverged as error:
            raise UserError(error.problem, self.remedy(error)) from None
        if trainer.step < stage.steps:
            on_first(self.accelerator, lambda: self.save_unfinished(averaged, trainer))
            return "unfinished"
        on_first(self.accelerator, lambda: self.save(model, averaged, trainer.step, trainer.seconds))
        if main:
            self.say(f"{stage.name}: {stage.steps} steps in {trainer.seconds / 60:.1f} minutes, {model}")
            if trainer.evaluation and (best := trainer.best):
                path = self.folder / "best"
                self.say(f"{stage.name}: best {trainer.evaluation.name} {best.text} at step {best.step}, {path}")
        return "trained"

    def time_is_up(self) -> bool:
        """Whether no further step may begin."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def save_unfinished(self, averaged: nn.Module, trainer: Trainer) -> None:
        """Writes the model that the stage has come to, beside the checkpoint that it goes on from.

        Args:
            averaged: the averaged model.
            trainer: its trainer, which the time was up for.
        """
        step, steps = trainer.step, self.stage.steps
        if checkpoint_path(self.folder / "checkpoints", step).exists():  # or no step was good
            _, fields = trainer.objective.phase_model(step - 1) or ("", {})
            quality = f"- Not finished: step {step:,} of {steps:,}\n"
            self.save(self.model, averaged, step, trainer.seconds, info=replace(self.info, **fields), quality=quality)
            so_far = f"its model so far is {self.model}"
        else:
            so_far = "it has no model yet"
        self.say(f"{self.stage.name}: the time is up after step {step} of {steps}; {so_far}; {self.go_on()}")

    def go_on(self) -> str:
        """The command that goes on with the run, in words."""
        return f"go on with: unistep train `resume={shlex.quote(str(self.run_folder))}`"

    def look(self) -> tuple[bool, int]:
        """Looks at what is there of the stage, and removes what is half-written.

        Returns:
            Whether it has ended and its model is whole; number of steps in its newest checkpoint.
        """
        stage, model = self.stage, self.model
        clean_stage(self.folder)
        done = max(checkpoint_steps(self.folder / "checkpoints"), default=0)
        begun_after = any(
            checkpoint_steps(self.run_folder / other.name / "checkpoints")
            for other in self.config.stages[self.config.stages.index(stage) + 1 :]
        )
        if model.exists() and not (model / INDEX).exists():
            _log.warning("%s is missing; the model is made again, and what is left of it is %s.damaged", INDEX, model)
            make_room(model)
        elif model.exists() and (done >= stage.steps or (begun_after and not done)):
            last = checkpoint_path(self.folder / "checkpoints", done) if done else None
            damage = damage_of(model, self.design, last)
            if not damage:
                return True, done
            _log.warning("%s; the model is made again", damage)
        elif model.exists() and done:
            _log.info("%s: %s stays that of the shorter training until the stage ends", stage.name, model)
        elif model.exists():
            _log.warning("%s has no checkpoint: the stage is trained from its beginning", self.folder)
        if done:
            self.say(f"{stage.name}: resuming after step {done} of {stage.steps}")
        return False, done

    def remedy(self, error: Diverged) -> str:
        """The command that goes on with the stage after it diverged."""
        run, name = shlex.quote(str(self.run_folder)), self.stage.name
        return f"{error.remedy}: unistep train `resume={run}` `{name}.optimizer.lr={error.lr:.3g}`"

    def trainer(self, init: LoadedModel | None, teacher: LoadedModel | None) -> Trainer:
        """The trainer of the stage, at its beginning."""
        device, engine = self.accelerator.device, build_engine(self.config.engine, self.accelerator)
        student = build_model(self.config, self.design, init)
        if not engine.sharded:  # else it goes there in parts
            student = student.to(device)
        perceptual = open_perceptual(self.config).to(device) if self.stage.objective.needs_perceptual else None
        own = None if teacher is None or self.design.teacher is None else engine.own_teacher(teacher.denoiser)
        taught_by = own
        if self.config.compile != "none" and device.type == "cuda" and not engine.sharded:
            student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if taught_by is not None and self.config.compile != "none":
            if self.accelerator.num_processes == 1:
                taught_by = compiled(taught_by)
            else:
                compile_blocks(taught_by)
        objective = build_objective(self.config, self.design, student, teacher=taught_by, perceptual=perceptual)
        if own is not None:
            engine.freeze(own)
        return Trainer(
            self.folder,
            student,
            objective,
            self.dataset,
            self.stage,
            seed=self.config.seed_of(self.stage),
            accelerator=self.accelerator,
            use_labels=bool(self.design.network.num_class_embeds),
            flip=self.config.data.flip,
            preview=self.preview,
            phase_done=self.saves_phase(objective),
            evaluation=self.measured(),
            title=self.stage.name,
            settings=stage_settings(self.config, self.stage),
            trackers=Trackers(
                self.config.trackers, self.folder, f"{self.run_folder.absolute().name}/{self.stage.name}"
            ),
            progress=self.progress,
            deadline=self.deadline,
            compile=self.config.compile,
            engine=engine,
            limits=self.limits,
        )

    def outline(self, student: nn.Module, objective: Objective, step: int) -> None:
        """Writes the outline that makes a model of every checkpoint.

        Args:
            student: model in training.
            objective: its objective.
            step: number of steps done.

        Raises:
            UserError: it cannot be written.
        """
        network: Any = student.network
        _, fields = objective.phase_model(min(step, self.stage.steps - 1)) or ("", {})
        try:
            write_outline(self.folder / OUTLINE, network, replace(self.info, **fields))
        except OSError as error:
            raise write_error(self.folder / OUTLINE, error, "resume") from None

    def say(self, line: str) -> None:
        """Logs a line, on the first process."""
        if self.accelerator.is_main_process:
            _log.info(line)

    def save(
        self,
        path: Path,
        model: nn.Module,
        steps: int,
        seconds: float,
        *,
        info: ModelInfo | None = None,
        quality: str = "",
    ) -> None:
        """Writes a model folder of averaged weights.

        Args:
            path: the folder.
            model: the averaged model.
            steps: steps that it was trained for.
            seconds: time that they took.
            info: noise range and kind; None is the stage's.
            quality: line of its card.
        """
        network: Any = model.network
        info = info or self.info
        compute = {
            "steps": steps,
            "images": steps * self.stage.batch_size,
            "seconds": round(seconds),
            "parameters": sum(p.numel() for p in network.parameters()),
        }
        data = self.config.data.source
        # With the size, channels and classes that the images have given the network.
        config = dump(replace(self.config, network=network.config))
        known = BUNDLED.get(data) or SOURCES.get(data)
        title = data if known is None else known.title
        terms = [f"the data ({title})", *self.config.models]
        training = Training(data, compute, config, terms, quality)
        picture = self.folder / "samples" / f"step-{steps:08d}.png"
        found = picture if picture.exists() else None
        card = model_card(self.run_folder.name, info, network.config, training, has_picture=found is not None)
        save_model(path, network, info, card=card, picture=found)

    def saves_phase(self, objective: Objective) -> Callable[[nn.Module, int, float], None] | None:
        """The function that keeps the model of a phase at its end; None where the method has no phases."""
        if objective.phase_model(0) is None:
            return None

        def save(model: nn.Module, step: int, seconds: float) -> None:
            found = objective.phase_model(step - 1)
            assert found is not None
            name, fields = found
            self.save(self.folder / f"model-{name}", model, step, seconds, info=replace(self.info, **fields))
            self.outline(model, objective, step)

        return save

    def measured(self) -> Evaluation | None:
        """Returns the evaluation of the stage while it trains, which keeps its best model."""
        found = self.evaluation
        if found is None or self.stage != self.config.evaluated:
            return None
        found.prepare(self.say)
        return Evaluation(
            found.name,
            self.config.evaluate_every,
            measure=lambda model: found.measure(model, self.info),
            keep=lambda model, best, seconds: self.save(
                self.folder / "best", model, best.step, seconds, quality=found.in_words(best, self.info)
            ),
        )

    def preview(self, model: nn.Module, path: Path) -> None:
        """Writes a sample grid: eight images a class, or 64; of a consistency model in one step and in two."""
        assert isinstance(model, Preconditioned)
        config: Any = model.network.config
        classes = num_classes(config, self.info)
        columns = min(classes, 10) or 8
        indices = list(range(columns * (4 if classes else 8)))
        labels = torch.arange(len(indices)) % columns if classes else None
        shape = image_shape(config)
        plans = [default_plan(self.info, n) for n in ((1, 2) if self.info.kind == "consistency" else (None,))]
        device = self.accelerator.device
        with self.accelerator.autocast():
            batches = [torch.cat(list(generate(model, p, shape, indices, labels=labels, device=device))) for p in plans]
        save_grid(torch.cat(batches), path, columns)
