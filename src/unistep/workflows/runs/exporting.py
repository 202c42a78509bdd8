"""The weights of a run, on their way into a folder that travels."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unistep.config import RunConfig, StageConfig
from unistep.errors import UserError
from unistep.files import write_error
from unistep.formats.checkpoint import checkpoint_path, checkpoint_steps, filled, read_checkpoint, whole_checkpoint
from unistep.formats.model import LoadedModel
from unistep.formats.model_folder.files import INDEX
from unistep.formats.model_folder.folder import load_model, load_outline
from unistep.formats.run_directory import OUTLINE
from unistep.formats.weights_in_parts import INDEX as PARTS
from unistep.formats.weights_in_parts import write_in_parts
from unistep.workflows.runs.exported import EMA, MODEL, OBJECTIVE, STUDENT, ExportedStage, network_object
from unistep.workflows.runs.folder import write_config
from unistep.workflows.runs.visits import new_visit, read_beginning, write_visits

_LAYOUT = "resume the run, and export it again"


def gather(folder: Path, config: RunConfig, averages_only: bool) -> tuple[list[ExportedStage], dict[str, Tensor]]:
    """The stages of a run that have begun, and their tensors.

    Args:
        folder: run directory.
        config: its config.
        averages_only: whether the weights in training are left out.

    Raises:
        UserError: no stage has a checkpoint yet, or a file is missing or damaged.
    """
    begun = [stage for stage in config.stages if checkpoint_steps(folder / stage.name / "checkpoints")]
    if not begun:
        raise UserError(f"{folder} has no checkpoint yet", "train it for some steps first")
    newest = begun[-1]
    stages: list[ExportedStage] = []
    tensors: dict[str, Tensor] = {}
    for stage in config.stages[: config.stages.index(newest)]:
        row, own = _finished(folder / stage.name, stage)
        stages.append(row)
        tensors |= {f"{stage.name}/{MODEL}/{name}": value for name, value in own.items()}
    row, groups = _newest(folder / newest.name, newest)
    for group, own in groups.items():
        if not (averages_only and group == STUDENT):
            tensors |= {f"{newest.name}/{group}/{name}": value for name, value in own.items()}
    return [*stages, row], tensors


def _finished(folder: Path, stage: StageConfig) -> tuple[ExportedStage, dict[str, Tensor]]:
    if not (folder / "model" / INDEX).exists():
        raise UserError(f"{folder / 'model'} is missing", _LAYOUT)
    model, last = load_model(folder / "model"), max(checkpoint_steps(folder / "checkpoints"), default=0)
    seconds = 0.0
    if last:
        with contextlib.suppress(UserError):  # the model tells the rest
            seconds = read_checkpoint(checkpoint_path(folder / "checkpoints", last), mapped=True, whole=False)[
                "seconds"
            ]
    row = _row(stage, model, finished=True, step=last or stage.steps, seconds=seconds)
    network = model.denoiser.network
    return row, _rounded(network.state_dict(), {name for name, _ in network.named_parameters()})


def _newest(folder: Path, stage: StageConfig) -> tuple[ExportedStage, dict[str, dict[str, Tensor]]]:
    path = whole_checkpoint(folder / "checkpoints")
    assert path is not None  # or it would have been raised that all are damaged
    state = read_checkpoint(path, mapped=True, checked=True, whole=False)
    state = filled(state | {"optimizer": None}, path)  # most of it, and not needed
    outline = load_outline(folder / OUTLINE, {}, "meta")
    guard = state.get("guard", {})
    row = _row(
        stage,
        outline,
        step=state["step"],
        seconds=state["seconds"],
        lr=guard.get("lr") or stage.optimizer.lr,
        lr_factor=guard.get("lr_factor", 1.0),
    )
    parameters = {name for name, _ in outline.denoiser.named_parameters()}
    groups = {STUDENT: state["student"]} | {f"{EMA}{decay}": average for decay, average in state["ema"].items()}
    groups[OBJECTIVE] = state["objective"]
    return row, {group: _rounded(own, parameters) for group, own in groups.items()}


def _row(stage: StageConfig, model: LoadedModel, **values: Any) -> ExportedStage:
    usual = {"finished": False, "lr": None, "lr_factor": 1.0}
    network = network_object(model.denoiser.network)
    return ExportedStage(
        stage.name, stage.method, network=network, class_names=list(model.info.class_names), **(usual | values)
    )


def _rounded(state: Mapping[str, Tensor], parameters: Collection[str]) -> dict[str, Tensor]:
    """The tensors as bf16; vectors (biases, norms) and buffers, which are few numbers, stay as they are."""
    return {
        name: value.detach().to(torch.bfloat16 if name in parameters and value.dim() > 1 else value.dtype)
        for name, value in state.items()
    }


def export(
    folder: Path,
    config: RunConfig,
    target: Path,
    most_bytes: int,
    averages_only: bool,
    device: str,
    distance: str | None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Writes the weights of a run; an older export is replaced only when the new one is complete.

    Args:
        folder: run directory.
        config: its config.
        target: folder of the export.
        most_bytes: size of the largest part.
        averages_only: whether the weights in training are left out.
        device: device that the run was trained on.
        distance: measured distance in words; None takes the run's last evaluation.

    Returns:
        The log of visits, and the number of steps done of each stage.

    Raises:
        UserError: the run has no checkpoint, a file is damaged, or the target is something else or cannot be written.
    """
    target = target.resolve()
    if target.exists() and not (target.is_dir() and ((target / PARTS).exists() or not any(target.iterdir()))):
        raise UserError(f"{target} exists and holds no exported weights; choose another `out`")
    stages, tensors = gather(folder, config, averages_only)
    beginning, names = read_beginning(folder), [stage.name for stage in stages]
    steps, seconds = {s.name: s.step for s in stages}, {s.name: s.seconds for s in stages}
    batches = {name: config.stage(name).batch_size for name in names}
    distance = distance or last_evaluation(folder / names[-1] / "metrics.jsonl")
    visits = [*beginning.visits, new_visit(beginning, steps, seconds, batches, device, distance)]
    temporary, old = (target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.{word}") for word in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        write_config(temporary, config)
        write_visits(temporary, visits)
        write_in_parts(temporary, tensors, {"stages": [stage.to_dict() for stage in stages]}, most_bytes)
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(target, error, "choose another `out`") from None
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        for path in (temporary, old):
            shutil.rmtree(path, ignore_errors=True)
    return visits, steps


def last_evaluation(log: Path) -> str | None:
    """The newest measurement in the log of a stage, in words; None where there is none."""
    for line in reversed(log.read_bytes().split(b"\n")) if log.exists() else ():
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            values = json.loads(line)
            if name := next((key.removesuffix("/low") for key in values if key.endswith("/low")), None):
                return f"{name} {values[name]:.4g} at step {values['step']}" if name in values else None
    return None
