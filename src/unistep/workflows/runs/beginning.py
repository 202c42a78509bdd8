"""A run that begins from exported weights: its folder, made whole before it has its name.

The stages are checkpoints without moments of the optimizer; a finished stage is a model beside its checkpoint, whose
weights in training are the averaged ones. Where the weights in training were left out of the export they are the
averaged ones too.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unistep.config import RunConfig
from unistep.config.recipes import CONFIG
from unistep.errors import UserError
from unistep.files import write_error
from unistep.formats.checkpoint import save_checkpoint
from unistep.formats.empty import without_weights
from unistep.formats.model_folder.card import plain_card
from unistep.formats.model_folder.folder import save_model, write_outline
from unistep.formats.run_directory import OUTLINE
from unistep.formats.tensor_file import tensor_name
from unistep.formats.weights_in_parts import read_parts
from unistep.training.guard import Guard
from unistep.workflows.runs.design import StageDesign
from unistep.workflows.runs.exported import (
    EMA,
    MODEL,
    OBJECTIVE,
    STUDENT,
    Exported,
    ExportedStage,
    check_stages,
    network_object,
    tensors_of,
)
from unistep.workflows.runs.folder import write_config
from unistep.workflows.runs.network import build_network
from unistep.workflows.runs.visits import Beginning, read_beginning, read_visits, write_beginning

_log = logging.getLogger("unistep")


def with_finished(config: RunConfig, exported: Exported) -> RunConfig:
    """The config with the exported stages that are finished ended where they are.

    Raises:
        UserError: the stages are not those of the run.
    """
    check_stages(exported, config)
    finished = {stage.name: stage.step for stage in exported.stages if stage.finished}
    stages = [replace(s, steps=finished[s.name]) if s.name in finished else s for s in config.stages]
    return replace(config, stages=tuple(stages))


def begin(folder: Path, config: RunConfig, designs: Sequence[StageDesign], exported: Exported) -> None:
    """Makes the folder of a run that begins from exported weights; one that has begun from them stays as it is.

    Args:
        folder: folder of the run.
        config: its config.
        designs: its stages.
        exported: the weights.

    Raises:
        UserError: the weights are of other networks or damaged, the folder is another run's, or cannot be written.
    """
    if (folder / CONFIG).exists():
        if read_beginning(folder).index != exported.index.sha256:
            raise UserError(
                f"{folder} holds a run that did not begin from {exported.folder}",
                "choose another `output`, or `resume`",
            )
        return
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a run directory; choose another `output`")
    pairs = list(zip(exported.stages, designs, strict=False))
    networks = [_checked(exported, stage, design) for stage, design in pairs]
    visits = read_visits(exported.folder)
    tensors = read_parts(exported.folder, exported.index)
    temporary = folder.resolve().with_name(f".{folder.resolve().name}.{uuid.uuid4().hex[:8]}.tmp")
    steps = {stage.name: stage.step for stage in exported.stages}
    seconds = {stage.name: stage.seconds for stage in exported.stages}
    try:
        temporary.mkdir(parents=True)
        write_config(temporary, config)
        write_beginning(temporary, Beginning(exported.index.sha256, steps, seconds, visits))
        for (stage, design), network in zip(pairs, networks, strict=True):
            write_outline(temporary / stage.name / OUTLINE, network, design.info)
            state = _state(stage, design, exported, tensors)
            if stage.finished:
                network.load_state_dict(tensors_of(tensors, stage.name, MODEL), assign=True)
                card = plain_card(folder.name, design.info, f"weights of {exported.folder.name}", design.network)
                save_model(temporary / stage.name / "model", network, design.info, card=card)
            save_checkpoint(temporary / stage.name / "checkpoints", stage.step, state, keep=1)
        os.replace(temporary, folder.resolve())
        newest, before = exported.stages[-1], len(visits)
        _log.info(
            "%s begins from %s, %d visit%s before: %s goes on after step %d, with new moments of the optimizer",
            *(folder, exported.folder, before, "s" * (before != 1), newest.name, newest.step),
        )
    except OSError as error:
        raise write_error(folder, error, "choose another `output`") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _checked(exported: Exported, stage: ExportedStage, design: StageDesign) -> nn.Module:
    """The network of a stage without weights, where it is that of the exported ones.

    Raises:
        UserError: it is another, or its weights are not all there.
    """
    where = f"{exported.folder}: the network of its stage {stage.name}"
    with without_weights():
        network = build_network(design.network, 0)
    ours, theirs = network_object(network), stage.network
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{where} has {name} {_short(theirs.get(name))}, the run's {_short(ours.get(name))}",
                "give the network and data that the weights were trained with",
            )
    if (names := list(design.info.class_names)) and stage.class_names and names != stage.class_names:
        raise UserError(
            f"{where} has other names of classes than the data", "give the data in the same order of classes"
        )
    groups = {MODEL} if stage.finished else {f"{EMA}{decay}" for decay in design.stage.ema_decays}
    there = exported.groups(stage.name)
    if missing := sorted(groups - set(there)):
        given = ", ".join(group.removeprefix(EMA) for group in there if group.startswith(EMA)) or "none"
        raise UserError(f"{where} has no {missing[0]}; its `{stage.name}.ema_decays` are {given}", "give the same ones")
    prefix = "" if stage.finished else "network."
    shapes = {f"{prefix}{name}": tuple(value.shape) for name, value in network.state_dict().items()}
    for group in (*groups, *({STUDENT} & set(there))):
        found = exported.names(stage.name, group)
        for name in dict.fromkeys([*shapes, *found]):
            if shapes.get(name) != found.get(name):
                raise UserError(
                    f"{where} has another tensor {tensor_name(name)} than the run's", "give the same network"
                )
    return network


def _state(
    stage: ExportedStage, design: StageDesign, exported: Exported, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """A checkpoint of a stage, as the trainer takes it up."""
    if stage.finished:
        model = tensors_of(tensors, stage.name, MODEL)
        averages = {str(d): {f"network.{k}": v for k, v in model.items()} for d in design.stage.ema_decays}
    else:
        averages = {str(d): tensors_of(tensors, stage.name, f"{EMA}{d}") for d in design.stage.ema_decays}
    student = tensors_of(tensors, stage.name, STUDENT) or averages[str(design.stage.ema_decays[0])]
    lr = design.stage.optimizer.lr if stage.lr is None else stage.lr
    return {
        "step": stage.step,
        "seconds": float(stage.seconds),
        "student": student,
        "ema": averages,
        "optimizer": None,
        "objective": tensors_of(tensors, stage.name, OBJECTIVE),
        "scaler": None,
        "since": 0,
        "best": None,
        "guard": Guard(lr=lr, lr_factor=float(stage.lr_factor), good=stage.step).state_dict(),
    }


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
