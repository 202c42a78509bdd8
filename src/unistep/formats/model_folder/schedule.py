"""scheduler/scheduler_config.json of a model folder: the noise range and grid, as one of diffusers' schedulers.

    CMStochasticIterativeScheduler   a consistency model
    EDMEulerScheduler                a diffusion model with EDM's scalings

Facts for which diffusers has no field stand in the entry `_unistep`, which diffusers keeps and ignores. Files without
that entry are read as diffusers reads them: c_noise is 250 ln(sigma) with the first scheduler, ln(sigma)/4 with the
second.
"""

import dataclasses
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unistep.errors import UserError
from unistep.files import LAYOUT
from unistep.formats.json_config import read_object, refuse_other, refuse_unknown, shown, typed_fields, write_object
from unistep.formats.model import Kind, ModelInfo
from unistep.formats.model_folder.network import DIFFUSERS_VERSION

_OWN = "_unistep"
_SHARED = ("sigma_min", "sigma_max", "sigma_data", "rho", "num_train_timesteps")


@dataclass(frozen=True)
class _Scheduler:
    """A scheduler class of diffusers'.

    Args:
        class_name: name of the class.
        fixed: fields that must have one value here.
        num_train_timesteps: default number of levels.
    """

    class_name: str
    fixed: dict[str, Any]
    num_train_timesteps: int


_SCHEDULERS: dict[Kind, _Scheduler] = {
    "consistency": _Scheduler("CMStochasticIterativeScheduler", {"s_noise": 1.0, "clip_denoised": True}, 40),
    "diffusion": _Scheduler(
        "EDMEulerScheduler",
        {"prediction_type": "epsilon", "sigma_schedule": "karras", "final_sigmas_type": "zero"},
        1000,
    ),
}


def scheduler_class(kind: Kind) -> str:
    """The name of diffusers' scheduler for models of a kind."""
    return _SCHEDULERS[kind].class_name


def schedule_object(info: ModelInfo) -> dict[str, Any]:
    """The content of scheduler_config.json for a model."""
    scheduler, default = _SCHEDULERS[info.kind], dataclasses.asdict(ModelInfo())
    values = dataclasses.asdict(info)
    own = {"noise_embedding": info.noise_embedding}
    own |= {name: value for name, value in values.items() if name not in ("kind", *_SHARED) and value != default[name]}
    return {
        "_class_name": scheduler.class_name,
        "_diffusers_version": DIFFUSERS_VERSION,
        **{name: values[name] for name in _SHARED},
        **scheduler.fixed,
        _OWN: own,
    }


def read_info(path: Path, *, diffusers_network: bool) -> ModelInfo:
    """Reads the facts about a model in a scheduler_config.json.

    Args:
        path: the file.
        diffusers_network: true if the network beside it is of a class of diffusers'.

    Raises:
        UserError: no such file, not JSON, an unknown scheduler, or values out of range.
    """
    raw = read_object(path, LAYOUT)
    kinds: dict[str, Kind] = {scheduler.class_name: kind for kind, scheduler in _SCHEDULERS.items()}
    class_name, own = raw.get("_class_name"), raw.get(_OWN, {})
    if not isinstance(class_name, str) or class_name not in kinds:
        raise UserError(f"{path}: unknown scheduler {shown(class_name)}; known are {', '.join(kinds)}")
    if not isinstance(own, dict):
        raise UserError(f"{path}: {_OWN} is {shown(own)}; it must be a JSON object")
    for name in raw.keys() & own.keys():
        raise UserError(f"{path}: {shown(name)} is given twice, in {_OWN} and beside it; remove one")
    kind = kinds[class_name]
    scheduler = _SCHEDULERS[kind]
    known = {field.name for field in dataclasses.fields(ModelInfo)} - {"kind"}
    refuse_other(raw, scheduler.fixed, path)
    refuse_unknown(raw, known | scheduler.fixed.keys(), path)
    refuse_unknown(own, known, path)

    values: dict[str, Any] = {"kind": kind, "num_train_timesteps": scheduler.num_train_timesteps}
    if kind == "diffusion" and diffusers_network:
        values["noise_embedding"] = "edm"
    given = {name: value for name, value in (raw | own).items() if name in known and value is not None}
    try:
        return ModelInfo(**(values | typed_fields(ModelInfo, given, path)))
    except UserError as error:
        message = str(error).replace("`", "")  # names of the file's entries, and not of parameters
        raise UserError(message if message.startswith(str(path)) else f"{path}: {message}") from None


def schedule_file(folder: Path) -> Path:
    """scheduler_config.json of a model folder.

    Raises:
        UserError: the file cannot be replaced.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: there is no permission to write in {path.parent}; copy the model folder")
    return path


def write_schedules(path: Path, info: ModelInfo) -> None:
    """Replaces the schedules in a scheduler_config.json by those of `info`; all else that it holds stays.

    Raises:
        UserError: there is no such file, or it cannot be written.
    """
    raw = read_object(path, LAYOUT)
    own = dict(raw.get(_OWN, {}))
    for name, value in (("timesteps", info.timesteps), ("schedules", info.schedules)):
        raw.pop(name, None)
        own.pop(name, None)
        if value:
            own[name] = value
    raw[_OWN] = own
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write_object(temporary, raw)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
