"""Training runs: one or two stages in a run directory.

    config.yaml                      the resolved config
    teacher/  student/               a stage each: checkpoints/, samples/, metrics.jsonl, tensorboard/, model/

Every stage ends in its `model/` folder. A killed run goes on from its newest checkpoint; a finished stage is not
trained again. Where a stage is measured in training, its best model is in `best/`. Progressive distillation leaves a
model of every phase too: `model-8-steps/`, `model-4-steps/` ...
"""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from unistep.config import RunConfig, StudentConfig, TeacherConfig, completed, dump
from unistep.core.parameterization import Preconditioned
from unistep.data import ImageDataset, open_dataset
from unistep.errors import UserError
from unistep.formats.model import ModelInfo, precondition
from unistep.formats.model_folder.card import model_card
from unistep.formats.model_folder.folder import load_model, save_model
from unistep.formats.published.lpips import load_lpips
from unistep.generation.generate import generate
from unistep.generation.plan import default_plan
from unistep.images.grid import save_grid
from unistep.objectives.consistency import ConsistencyConfig
from unistep.objectives.denoising import DenoisingObjective
from unistep.objectives.progressive import ProgressiveObjective
from unistep.objectives.protocol import Objective
from unistep.training.checkpoint import checkpoint_steps
from unistep.training.evaluation import Evaluation
from unistep.training.trainer import Precision, Trainer, TrainerConfig, pick_precision
from unistep.workflows.evaluation_in_training import TrainingEvaluation, open_evaluation
from unistep.workflows.parts import (
    build_network,
    build_student,
    build_teacher,
    network_config,
    open_teacher,
    student_objective,
    teacher_parts,
)


def build_accelerator(precision: Precision) -> Accelerator:
    """Devices and processes as the launcher gave them; gradients are split by the trainer."""
    cpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    device = torch.device("cpu" if cpu else "cuda" if torch.cuda.is_available() else "mps")
    AcceleratorState._reset_state()  # a second run in this process may have another precision
    try:
        return Accelerator(mixed_precision=pick_precision(precision, device), cpu=cpu)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"precision {precision}: {error}; give auto or fp32") from None


def train(config: RunConfig, folder: Path, say: Callable[[str], None] = print) -> Path:
    """Runs the stages of `config` in `folder` and returns the last one's model folder.

    Raises:
        UserError: the config does not fit the data, or the folder holds another run.
        Interrupted: a signal came; what is done is saved.
    """
    accelerator = build_accelerator(config.precision)
    method = None if config.student is None else config.student.method
    for stage in (config.teacher, config.student):
        if stage is not None:
            stage.check_split(accelerator.num_processes)
    with accelerator.main_process_first():  # one process prepares the cache, the others find it
        dataset = open_dataset(config.data)
        if isinstance(method, ConsistencyConfig) and method.distance == "lpips":  # or the student stage would refuse
            load_lpips(config.lpips.vgg, config.lpips.heads)
    architecture = network_config(config, dataset)
    teacher = open_teacher(config, dataset)
    if teacher is not None and config.student is not None:  # built here only to refuse before anything is written
        build_student(config, config.student, architecture, teacher)
        build_teacher(teacher, config.student.method, torch.device("cpu"))
    parts = None
    if config.teacher is not None:
        assert architecture is not None  # the config sees to it
        parts = teacher_parts(config, architecture)
    evaluation = open_evaluation(config, dataset, accelerator)
    if accelerator.is_main_process:
        claim_folder(folder, config)
    accelerator.wait_for_everyone()

    model = folder
    stage = _Stage(config, folder, accelerator, dataset, say, evaluation)
    if config.teacher is not None and parts is not None:
        wider, info = parts
        objective = DenoisingObjective(config.teacher.objective, config.sigma_data, info.null_label)
        network = build_network(wider, config.seed)
        model = stage.run("teacher", config.teacher, precondition(network, info), objective, info)
        teacher = load_model(model)
    if config.student is not None:
        student, info = build_student(config, config.student, architecture, teacher)
        student.to(accelerator.device)
        objective = student_objective(config, config.student, student, teacher, accelerator.device)
        model = stage.run("student", config.student, student, objective, info)
    return model


class _Stage:
    """Trains one stage and saves its model folder."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        accelerator: Accelerator,
        dataset: ImageDataset,
        say: Callable[[str], None],
        evaluation: TrainingEvaluation | None,
    ) -> None:
        self.config, self.folder, self.accelerator, self.dataset, self.say = config, folder, accelerator, dataset, say
        self.evaluation = evaluation

    def run(
        self,
        name: str,
        stage: TeacherConfig | StudentConfig,
        student: Preconditioned,
        objective: Objective,
        info: ModelInfo,
    ) -> Path:
        """Returns the stage's model folder; a finished stage is only looked up."""
        folder = self.folder / name
        model = folder / "model"
        main = self.accelerator.is_main_process
        done = checkpoint_steps(folder / "checkpoints")
        if (model / "model_index.json").exists() and done and done[-1] >= stage.steps:
            if main:
                self.say(f"{name}: finished before, {model}")
            return model
        if main and done:
            self.say(f"{name}: resuming after step {done[-1]} of {stage.steps}")
        trainer = Trainer(
            folder,
            student,
            objective,
            self.dataset,
            trainer_config(stage),
            seed=self.config.seed + (name == "student"),
            accelerator=self.accelerator,
            use_labels=bool(student.network.config.num_class_embeds),  # pyright: ignore
            flip=self.config.data.flip,
            preview=lambda model, path: self.preview(model, info, path),
            phase_done=(
                self.save_phase(folder, stage, objective, info)
                if main and isinstance(objective, ProgressiveObjective)
                else None
            ),
            evaluation=self.evaluation_of(name, folder, stage, info),
            title=name,
        )
        averaged = trainer.run()
        if main:
            self.save(model, averaged, info, stage, trainer.step, trainer.seconds)
            self.say(f"{name}: {stage.steps} steps in {trainer.seconds / 60:.1f} minutes, {model}")
            if trainer.evaluation and (best := trainer.best):
                self.say(f"{name}: best {trainer.evaluation.name} {best.text} at step {best.step}, {folder / 'best'}")
        self.accelerator.wait_for_everyone()
        return model

    def save(
        self,
        path: Path,
        model: nn.Module,
        info: ModelInfo,
        stage: TrainerConfig,
        steps: int,
        seconds: float,
        quality: str = "",
    ) -> None:
        """Writes a model folder of the averaged weights after `steps` steps; `quality` is a line of its card."""
        network: Any = model.network
        compute = {
            "steps": steps,
            "images": steps * stage.batch_size,
            "seconds": round(seconds),
            "parameters": sum(p.numel() for p in network.parameters()),
        }
        card = model_card(self.folder.name, info, self.config.data.source, compute, dump(self.config), quality)
        save_model(path, network, info, card=card)

    def save_phase(
        self, folder: Path, stage: TrainerConfig, objective: ProgressiveObjective, info: ModelInfo
    ) -> Callable[[nn.Module, int, float], None]:
        """Keeps the model that a phase of progressive distillation ended with: each makes images in N steps."""

        def save(model: nn.Module, step: int, seconds: float) -> None:
            num_scales = objective.num_scales(step - 1)
            path = folder / f"model-{num_scales}-steps"
            self.save(path, model, replace(info, steps=num_scales), stage, step, seconds)

        return save

    def evaluation_of(self, name: str, folder: Path, stage: TrainerConfig, info: ModelInfo) -> Evaluation | None:
        """How a stage is measured while it trains, and its best model kept."""
        found = self.evaluation
        if found is None or name != self.config.evaluated:
            return None
        found.prepare(self.say)
        return Evaluation(
            found.name,
            self.config.evaluate_every,
            measure=lambda model: found.measure(model, info),
            keep=lambda model, best, seconds: self.save(
                folder / "best", model, info, stage, best.step, seconds, found.in_words(best, info)
            ),
        )

    def preview(self, model: nn.Module, info: ModelInfo, path: Path) -> None:
        """A sample grid: eight images a class, or 64; for a consistency model one step above two steps."""
        assert isinstance(model, Preconditioned)
        config: Any = model.network.config
        classes = (config.num_class_embeds or 0) - (info.null_label is not None)
        columns = min(classes, 10) or 8
        indices = list(range(columns * (4 if classes else 8)))
        labels = torch.arange(len(indices)) % columns if classes else None
        shape = (config.in_channels, config.sample_size or 64, config.sample_size or 64)
        plans = [default_plan(info, n) for n in ((1, 2) if info.kind == "consistency" else (None,))]
        with self.accelerator.autocast():
            batches = [
                torch.cat(list(generate(model, p, shape, indices, labels=labels, device=self.accelerator.device)))
                for p in plans
            ]
        save_grid(torch.cat(batches), path, columns)


def trainer_config(stage: TeacherConfig | StudentConfig) -> TrainerConfig:
    """What the trainer needs of a stage."""
    return TrainerConfig(**{f.name: getattr(stage, f.name) for f in dataclasses.fields(TrainerConfig)})


def claim_folder(folder: Path, config: RunConfig) -> None:
    """Writes `config.yaml`, or checks that the one there is the same run.

    Raises:
        UserError: the folder holds a run of another config, or something else.
    """
    path = folder / "config.yaml"
    temporary = path.with_suffix(".tmp")
    text = dump(config)
    if path.exists():
        try:
            held = yaml.safe_load(path.read_text())  # a comment that somebody added makes it no other run
        except (UnicodeDecodeError, yaml.YAMLError):
            held = None
        # A run of before a key was known took what is its default now.
        if not isinstance(held, dict) or completed(held) != yaml.safe_load(text):
            raise UserError(f"{folder} holds a run with another config; choose another --output, or delete it")
        return
    if folder.exists() and (not folder.is_dir() or any(p != temporary for p in folder.iterdir())):
        raise UserError(f"{folder} exists and is not a run directory; choose another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another --output") from None
