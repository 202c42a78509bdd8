"""Weights of a run in a folder that travels: its stages, and the names of their tensors.

    index.json, weights-N.safetensors     see `unistep.formats.weights_in_parts`
    config.yaml                           config of the run
    visits.json                           log of the trainings that made the weights

Of the newest stage the tensors are STAGE/student/NAME, STAGE/ema DECAY/NAME and STAGE/objective/NAME, the names being
those of a checkpoint; of a stage before it STAGE/model/NAME, the names being those of its network.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unistep.config import RunConfig
from unistep.config.recipes import CONFIG
from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.formats.model_folder.network import config_object
from unistep.formats.weights_in_parts import INDEX, Index, read_index

STUDENT, EMA, OBJECTIVE, MODEL = "student", "ema ", "objective", "model"

_REMEDY = "copy the whole folder again"
_KINDS = {"name": str, "method": str, "finished": bool, "step": int, "network": dict, "class_names": list}
_NUMBERS = ("seconds", "lr_factor")
_IDLE = ("_diffusers_version", "dropout", "label_dropout")


@dataclass(frozen=True)
class ExportedStage:
    """A stage whose weights were exported.

    Args:
        name: its name.
        method: its training method.
        finished: whether a later stage has begun from it, so that it is a model and is not trained on.
        step: number of steps done.
        seconds: time that they took.
        lr: learning rate of its config; None of a finished one.
        lr_factor: factor of the learning rate, after steps that were not finite.
        network: content of the config.json of its network.
        class_names: names of its classes.
    """

    name: str
    method: str
    finished: bool
    step: int
    seconds: float
    lr: float | None
    lr_factor: float
    network: Mapping[str, Any]
    class_names: list[str]

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return asdict(self)


@dataclass(frozen=True)
class Exported:
    """Weights that were exported.

    Args:
        folder: their folder.
        index: index of the tensors.
        stages: stages, in the order of the run.
    """

    folder: Path
    index: Index
    stages: tuple[ExportedStage, ...]

    def names(self, stage: str, group: str) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors of a stage's group, by their names in it."""
        return _within(self.index.shapes, f"{stage}/{group}/")

    def groups(self, stage: str) -> list[str]:
        """The names of a stage's groups, in order."""
        return list(dict.fromkeys(name.split("/")[1] for name in self.index.shapes if name.startswith(f"{stage}/")))


def tensors_of(tensors: Mapping[str, Tensor], stage: str, group: str) -> dict[str, Tensor]:
    """The tensors of a stage's group, by their names in it.

    Args:
        tensors: all tensors of an export.
        stage: name of the stage.
        group: name of the group.
    """
    return _within(tensors, f"{stage}/{group}/")


def read_exported(folder: Path) -> Exported:
    """Reads the index of exported weights.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", "give one that `unistep.export_weights` wrote", field="init_from")
    index = read_index(folder)
    check_regular_file(folder / CONFIG, _REMEDY)
    raw, path = index.facts.get("stages"), folder / INDEX
    if not isinstance(raw, list) or not 0 < len(raw) <= 100:
        raise UserError(f"{path}: its stages are no list", _REMEDY)
    for number, stage in enumerate(raw):
        if not _is_stage(stage):
            raise UserError(f"{path}: its stage {number} is damaged", _REMEDY)
    stages = tuple(ExportedStage(**stage) for stage in raw)
    if any(name.count("/") < 2 for name in index.shapes) or len({stage.name for stage in stages}) < len(stages):
        raise UserError(f"{path}: its tensors are of no stages", _REMEDY)
    if any(not stage.finished for stage in stages[:-1]) or stages[-1].finished:
        raise UserError(f"{path}: all of its stages but the last must be finished", _REMEDY)
    return Exported(folder, index, stages)


def check_stages(exported: Exported, config: RunConfig) -> None:
    """Refuses weights of stages that a run does not begin with.

    Raises:
        UserError: names the first stage that differs.
    """
    folder = exported.folder
    for number, theirs in enumerate(exported.stages):
        ours = config.stages[number] if number < len(config.stages) else None
        if ours is None or (ours.name, ours.method) != (theirs.name, theirs.method):
            here = "none" if ours is None else f"{ours.name} of method {ours.method}"
            raise UserError(
                f"{folder}: its stage number {number + 1} is {theirs.name} of method {theirs.method}, the run's {here}",
                f"give the recipe {folder / CONFIG}",
                field="init_from",
            )


def network_object(network: nn.Module) -> dict[str, Any]:
    """The content of the config.json of a network, in JSON's types, without what changes no weight."""
    values = json.loads(json.dumps(config_object(network)))
    return {name: value for name, value in values.items() if name not in _IDLE}


def _within(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _is_stage(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {f.name for f in fields(ExportedStage)}:
        return False
    if not all(type(value[name]) is kind for name, kind in _KINDS.items()) or not 0 <= value["step"] < 1 << 48:
        return False
    numbers = [value[name] for name in _NUMBERS] + [value["lr"]] * (value["lr"] is not None)
    if not all(type(number) in (int, float) and math.isfinite(number) and number >= 0 for number in numbers):
        return False
    return 0 < value["lr_factor"] <= 1 and all(isinstance(name, str) for name in value["class_names"])
