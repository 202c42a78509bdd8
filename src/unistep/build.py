"""The one place that turns a config into objects, and runs the stages of a training.

A run directory:

    config.yaml                      the resolved config
    teacher/  student/               a stage each: checkpoints/, samples/, metrics.jsonl, tensorboard/, model/

Every stage ends in its `model/` folder. A killed run goes on from its newest checkpoint; a finished stage is not
trained again.
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

from unistep.config import RunConfig, StudentConfig, TeacherConfig, dump
from unistep.core.denoiser import Denoiser
from unistep.core.parameterization import Preconditioned
from unistep.data import ImageDataset, open_dataset
from unistep.errors import UserError
from unistep.formats.card import model_card
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.formats.model_folder import load_model, save_model
from unistep.formats.open import open_model
from unistep.networks.adm import UNet, UNetConfig
from unistep.networks.patched import PatchedUNet, PatchedUNetConfig
from unistep.objectives.consistency import ConsistencyConfig, ConsistencyObjective, copy_target
from unistep.objectives.denoising import DenoisingObjective
from unistep.objectives.methods import method_name
from unistep.objectives.protocol import Objective
from unistep.pipelines.generate import DiffusionPlan, Plan, consistency_plan, generate, spaced_timesteps
from unistep.pipelines.grid import save_grid
from unistep.samplers.guidance import Guided
from unistep.training.checkpoint import checkpoint_steps
from unistep.training.trainer import Precision, Trainer, TrainerConfig, pick_precision

EMBEDDED = Path(__file__).parent / "assets" / "mnist"
EMBEDDED_TEACHER = Path(__file__).parent / "assets" / "mnist-teacher"
STAGES = ("student", "teacher")


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


def network_config(config: RunConfig, dataset: ImageDataset) -> PatchedUNetConfig:
    """The network's config with size, channels and classes of the data.

    Raises:
        UserError: the images are not square, or their size does not fit the network.
    """
    height, width = dataset.image_size
    if height != width:
        raise UserError(f"{config.data.source}: images are {width}x{height}; set data.resolution to make them square")
    classes = dataset.num_classes if config.use_labels else 0
    try:
        return replace(
            config.network,
            sample_size=height,
            in_channels=dataset.channels,
            out_channels=dataset.channels,
            num_class_embeds=classes or None,
        )
    except ValueError as error:
        raise UserError(f"network: {error}; set data.resolution or another network") from None


def build_network(config: UNetConfig, seed: int) -> UNet | PatchedUNet:
    """The backbone with random weights drawn from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it would seed the GPUs too
        if isinstance(config, PatchedUNetConfig) and config.patch_size > 1:
            return PatchedUNet(config)
        return UNet(UNetConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(UNetConfig)}))


def default_plan(info: ModelInfo, steps: int | None = None) -> Plan:
    """How a model is sampled where the user does not say.

    A consistency model takes 1 step, or the model's own schedule where it has one of `steps` steps, or levels spaced
    evenly over its grid. A diffusion model takes 18 Heun steps, or `steps`.
    """
    if info.kind == "diffusion":
        return DiffusionPlan("heun", steps or 18, info.sigma_min, info.sigma_max, info.rho)
    steps = steps or 1
    own = info.timesteps
    chosen = list(own) if own and len(own) == steps else spaced_timesteps(steps, info.num_train_timesteps)
    return consistency_plan(chosen, info.num_train_timesteps, info.sigma_min, info.sigma_max, info.rho)


def resolve_model(name: str | Path | None) -> Path:
    """The model folder of a folder, a run or a stage; None is the embedded model.

    Raises:
        UserError: there is none; what to do is said.
    """
    if name is None:
        return EMBEDDED
    path = Path(name)
    if (folder := _model_folder_of(path)) is not None:
        return folder
    if not path.exists():
        raise UserError(f"model {name} does not exist; give a model folder or a run directory")
    raise UserError(f"{name} is neither a model folder (no model_index.json) nor a run directory (no config.yaml)")


def open_any(name: str | Path | None, device: torch.device | str = "cpu", **options: Any) -> LoadedModel:
    """Opens whatever can be opened: the embedded model (None), a run directory, and all that `open_model` takes.

    Args:
        name: a run directory, a model folder, a .pt or .pkl file, or owner/name on the hub.
        device: where the model goes.
        options: of `unistep.formats.open.open_model`.

    Raises:
        UserError: there is no such model, or it is damaged; what to do is said.
    """
    if name is None:
        name = EMBEDDED
    path = Path(name)
    folder = _model_folder_of(path) if path.is_dir() else None
    return open_model(folder or name, device, **options)


def _model_folder_of(path: Path) -> Path | None:
    """The model folder that `path` is, or that the run or the stage `path` ended in; None where it is neither.

    Raises:
        UserError: a run that has not come so far.
    """
    for candidate in (path, path / "model", *(path / stage / "model" for stage in STAGES)):
        if (candidate / "model_index.json").exists():
            return candidate
    if (path / "config.yaml").exists():
        raise UserError(f"{path} is a run without a finished model; go on with: unistep train --resume {path}")
    return None


def train(config: RunConfig, folder: Path, say: Callable[[str], None] = print) -> Path:
    """Runs the stages of `config` in `folder` and returns the last one's model folder.

    Raises:
        UserError: the config does not fit the data, or the folder holds another run.
        Interrupted: a signal came; what is done is saved.
    """
    accelerator = build_accelerator(config.precision)
    for stage in (config.teacher, config.student):
        if stage is not None:
            stage.check_split(accelerator.num_processes)
    with accelerator.main_process_first():  # one process prepares the cache, the others find it
        dataset = open_dataset(config.data)
    architecture = network_config(config, dataset)
    if config.teacher is not None and config.teacher.objective.label_dropout and not architecture.num_class_embeds:
        raise UserError("teacher.objective.label_dropout needs class labels, and there are none; set it to 0")
    teacher = open_teacher(config, architecture)
    if accelerator.is_main_process:
        claim_folder(folder, config)
    accelerator.wait_for_everyone()

    model = folder
    stage = _Stage(config, folder, accelerator, dataset, say)
    if config.teacher is not None:
        null_label = architecture.num_class_embeds if config.teacher.objective.label_dropout else None
        wider = architecture if null_label is None else replace(architecture, num_class_embeds=null_label + 1)
        info = ModelInfo(kind="diffusion", sigma_data=config.sigma_data, null_label=null_label, method="EDM denoising")
        objective = DenoisingObjective(config.teacher.objective, config.sigma_data, null_label)
        network = build_network(wider, config.seed)
        model = stage.run("teacher", config.teacher, precondition(network, info), objective, info)
        teacher = load_model(model)
    if config.student is not None:
        student, info = build_student(config, config.student, architecture, teacher)
        student.to(accelerator.device)
        objective = ConsistencyObjective(
            config.student.objective,
            config.student.steps,
            config.sigma_data,
            teacher=None if teacher is None else build_teacher(teacher, config.student.objective, accelerator.device),
            target=copy_target(student) if config.student.objective.target == "ema" else None,
        )
        model = stage.run("student", config.student, student, objective, info)
    return model


def open_teacher(config: RunConfig, architecture: PatchedUNetConfig) -> LoadedModel | None:
    """The model that `teacher_model` names, if it does.

    Raises:
        UserError: there is none, or it does not fit the data or the student.
    """
    if config.teacher_model is None:
        return None
    teacher = load_model(resolve_model(config.teacher_model))
    if teacher.info.kind != "diffusion":
        raise UserError(f"teacher_model {config.teacher_model} is a consistency model; give a diffusion model")
    size, classes = architecture.sample_size, architecture.num_class_embeds or 0
    for what, its, ours in (
        ("makes images of (channels, height, width)", teacher.image_shape, (architecture.in_channels, size, size)),
        ("has a number of classes of", teacher.num_classes, classes),
    ):
        if its != ours:
            raise UserError(f"teacher_model {config.teacher_model} {what} {its}, the data {ours}; give one that fits")
    if config.student is not None:  # built here only to refuse before anything is written
        build_student(config, config.student, architecture, teacher)
        build_teacher(teacher, config.student.objective, torch.device("cpu"))
    return teacher


def build_teacher(teacher: LoadedModel, objective: ConsistencyConfig, device: torch.device) -> Denoiser:
    """The teacher as the objective calls it, guided where the config says so.

    Raises:
        UserError: guidance by a teacher without a null class.
    """
    denoiser = teacher.denoiser.to(device)
    if objective.guidance == 1:
        return denoiser
    if teacher.info.null_label is None:
        raise UserError(
            f"student.objective.guidance {objective.guidance:g} needs a teacher with a null class; "
            f"train one with teacher.objective.label_dropout, or set guidance to 1"
        )
    return Guided(denoiser, objective.guidance, teacher.info.null_label)


def build_student(
    config: RunConfig, stage: StudentConfig, architecture: PatchedUNetConfig, teacher: LoadedModel | None
) -> tuple[Preconditioned, ModelInfo]:
    """The student, from the teacher's weights where the config says so."""
    c = stage.objective
    info = ModelInfo(
        "consistency",
        c.sigma_min,
        c.sigma_max,
        c.rho,
        config.sigma_data,
        stage.num_train_timesteps,
        stage.timesteps,
        method=method_name(c),
    )
    network = build_network(architecture, config.seed)
    if stage.from_teacher and teacher is not None:
        try:
            weights = teacher.denoiser.network.state_dict()
            if teacher.info.null_label is not None:  # the student has no null class
                name = next(n for n in weights if n.endswith("class_embedding.weight"))
                weights[name] = weights[name][: teacher.info.null_label]
            network.load_state_dict(weights)
        except RuntimeError:
            raise UserError(
                f"the student's network differs from the teacher's ({teacher.path}); give it the same `network`, "
                "or set student.from_teacher to false"
            ) from None
    return precondition(network, info), info


class _Stage:
    """Trains one stage and saves its model folder."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        accelerator: Accelerator,
        dataset: ImageDataset,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.folder, self.accelerator, self.dataset, self.say = config, folder, accelerator, dataset, say

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
        trainer_fields = {f.name: getattr(stage, f.name) for f in dataclasses.fields(TrainerConfig)}
        trainer = Trainer(
            folder,
            student,
            objective,
            self.dataset,
            TrainerConfig(**trainer_fields),
            seed=self.config.seed + (name == "student"),
            accelerator=self.accelerator,
            use_labels=bool(student.network.config.num_class_embeds),  # pyright: ignore
            flip=self.config.data.flip,
            preview=lambda model, path: self.preview(model, info, path),
            title=name,
        )
        averaged = trainer.run()
        if main:
            network = averaged.network
            assert isinstance(network, UNet | PatchedUNet)
            compute = {
                "steps": stage.steps,
                "images": stage.steps * stage.batch_size,
                "seconds": round(trainer.seconds),
                "parameters": sum(p.numel() for p in network.parameters()),
            }
            card = model_card(self.folder.name, info, self.config.data.source, compute, dump(self.config))
            save_model(model, network, info, card=card)
            self.say(f"{name}: {stage.steps} steps in {trainer.seconds / 60:.1f} minutes, {model}")
        self.accelerator.wait_for_everyone()
        return model

    def preview(self, model: nn.Module, info: ModelInfo, path: Path) -> None:
        """A sample grid: eight images a class, or 64; for a consistency model one step above two steps."""
        assert isinstance(model, Preconditioned)
        config: UNetConfig = model.network.config  # pyright: ignore
        classes = (config.num_class_embeds or 0) - (info.null_label is not None)
        columns = min(classes, 10) or 8
        indices = list(range(columns * (4 if classes else 8)))
        labels = torch.arange(len(indices)) % columns if classes else None
        shape = (config.in_channels, config.sample_size or 64, config.sample_size or 64)
        plans = [default_plan(info, n) for n in ((1, 2) if info.kind == "consistency" else (18,))]
        with self.accelerator.autocast():
            batches = [
                torch.cat(list(generate(model, p, shape, indices, labels=labels, device=self.accelerator.device)))
                for p in plans
            ]
        save_grid(torch.cat(batches), path, columns)


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
        if held != yaml.safe_load(text):
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
