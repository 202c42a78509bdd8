"""The stages of a run, trained one after the other.

A killed run goes on from the newest checkpoint of its stage; a finished stage is not trained again, and none is begun
once the time is up.
"""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from unistep.config import RunConfig
from unistep.data import ImageDataset, read_dataset
from unistep.data.classes import classes_line
from unistep.errors import UserError
from unistep.formats.checkpoint import checkpoint_steps
from unistep.formats.model_folder.folder import load_model
from unistep.formats.run_directory import OUTLINE
from unistep.runtime.lock import FolderLock
from unistep.training.config import Precision
from unistep.training.limits import NO_LIMITS, Limits
from unistep.training.precision import pick_precision
from unistep.training.restore import on_first
from unistep.workflows.runs.beginning import begin
from unistep.workflows.runs.build import open_perceptual
from unistep.workflows.runs.classes import check_same_classes, kept_names
from unistep.workflows.runs.design import ImageKind, ModelDesign, design_stages
from unistep.workflows.runs.evaluation import open_evaluation
from unistep.workflows.runs.exported import Exported
from unistep.workflows.runs.fingerprint import check_data
from unistep.workflows.runs.folder import claim_folder
from unistep.workflows.runs.models import open_models
from unistep.workflows.runs.stage_run import StageRun

_log = logging.getLogger("unistep")


def build_accelerator(precision: Precision) -> Accelerator:
    """Devices and processes as the launcher gave them; gradients are split by the trainer.

    Raises:
        UserError: the device does not have the precision.
    """
    cpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    device = torch.device("cpu" if cpu else "cuda" if torch.cuda.is_available() else "mps")
    AcceleratorState._reset_state()  # a second run in this process may have another precision
    try:
        return Accelerator(mixed_precision=pick_precision(precision, device), cpu=cpu)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"`precision` {precision}: {error}; give auto or fp32") from None


def images_of(config: RunConfig, dataset: ImageDataset) -> ImageKind:
    """The shape of a dataset's images.

    Raises:
        UserError: they are not square.
    """
    height, width = dataset.image_size
    if height != width:
        raise UserError(f"{config.data.source}: images are {width}x{height}; set `data.resolution` to make them square")
    classes = dataset.num_classes if config.use_labels else 0
    return ImageKind(height, dataset.channels, classes, class_names=kept_names(dataset) if classes else ())


def dataset_of(config: RunConfig) -> ImageDataset:
    """The dataset of a run, without labels where it trains unconditional models.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    return read_dataset(config.data if config.use_labels else replace(config.data, use_labels=False))


def train_stages(
    config: RunConfig,
    folder: Path,
    *,
    progress: bool = True,
    lock: FolderLock | None = None,
    deadline: float | None = None,
    exported: Exported | None = None,
    limits: Limits = NO_LIMITS,
) -> None:
    """Trains what is left of a run.

    Args:
        config: run.
        folder: its folder; a new one is made.
        progress: whether to show how far it is.
        lock: lock of the folder, which the caller releases; None takes one for as long as the run is trained.
        deadline: time of `time.monotonic` after which no further step begins, but the first; None is none.
        exported: weights that a new run begins from; None is none.
        limits: times after which the process ends by itself.

    Raises:
        UserError: the config does not fit the data, the folder holds another run, or another process trains it.
        Interrupted: a signal came; what is done is saved.
    """
    if lock is None:
        with FolderLock("train") as own:
            given = {"progress": progress, "deadline": deadline, "exported": exported, "limits": limits}
            train_stages(config, folder, lock=own, **given)
        return
    accelerator = build_accelerator(config.precision)
    for stage in config.stages:
        stage.check_split(accelerator.num_processes)
    with accelerator.main_process_first():  # one process prepares the cache, the others find it
        dataset = dataset_of(config)
        if any(stage.objective.needs_perceptual for stage in config.stages):  # or a later stage would refuse
            open_perceptual(config)
    images = images_of(config, dataset)
    opened = open_models(config, images)
    designs = design_stages(config, images, {name: ModelDesign.of(model) for name, model in opened.items()})
    evaluation = open_evaluation(config, dataset, accelerator)

    def claim() -> None:
        if exported is not None:
            begin(folder, config, designs, exported)
        claim_folder(folder, config, lock)
        for design in designs:
            if checkpoint_steps(folder / design.stage.name / "checkpoints"):
                check_same_classes(folder / design.stage.name / OUTLINE, design.info)
        check_data(folder, dataset, config.data.source)

    on_first(accelerator, claim)
    if accelerator.is_main_process and images.class_names:
        _log.info("%s has %s", config.data.source, classes_line(images.class_names))
    later = {name for stage in config.stages for name in (stage.init, stage.taught_by)}
    trained = False
    for design in designs:
        stage = design.stage
        run = StageRun(config, design, folder, accelerator, dataset, evaluation, progress, deadline, limits)
        if trained and on_first(accelerator, run.time_is_up):
            run.say(f"{stage.name}: not begun, the time is up; {run.go_on()}")
            return
        outcome = run.run(opened.get(stage.init or ""), opened.get(stage.taught_by or ""))
        if outcome == "unfinished":
            return
        trained = trained or outcome == "trained"
        if stage.name in later:
            opened[stage.name] = load_model(run.model)
