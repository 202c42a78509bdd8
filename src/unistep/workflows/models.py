"""Models by whatever name a user has for them, and how each is sampled by default."""

from pathlib import Path
from typing import Any

import torch

import unistep
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo
from unistep.formats.model_folder.schedule import schedule_file
from unistep.formats.open import FILE_SUFFIXES, MODEL_ID, open_model
from unistep.generation.generate import DiffusionPlan, Plan, consistency_plan, spaced_timesteps

_ASSETS = Path(unistep.__file__).parent / "assets"
EMBEDDED = _ASSETS / "mnist"
EMBEDDED_TEACHER = _ASSETS / "mnist-teacher"
STAGES = ("student", "teacher")


def default_plan(info: ModelInfo, steps: int | None = None) -> Plan:
    """How a model is sampled where the user does not say.

    A consistency model takes 1 step, or the model's own schedule where it has one of `steps` steps, or levels spaced
    evenly over its grid. A diffusion model takes as many steps of its solver as it says, or `steps`; 18 of Heun's
    method where it says nothing.
    """
    if info.kind == "diffusion":
        return DiffusionPlan(info.solver, steps or info.steps or 18, info.sigma_min, info.sigma_max, info.rho)
    steps = steps or 1
    chosen = info.schedule(steps) or spaced_timesteps(steps, info.num_train_timesteps)
    return consistency_plan(chosen, info.num_train_timesteps, info.sigma_min, info.sigma_max, info.rho)


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


def is_model(name: str) -> bool:
    """Whether a name means a model rather than images: by what is there, and of what is not there by its form.

    Raises:
        UserError: a run that has no model yet.
    """
    path = Path(name)
    if path.is_dir():
        return _model_folder_of(path) is not None
    if path.suffix.lower() in (".zip", ".npz"):
        return False
    if path.exists():
        return path.suffix.lower() in FILE_SUFFIXES
    return MODEL_ID.fullmatch(name) is not None and not path.parent.is_dir()


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


def own_schedule_file(name: str | None, model: LoadedModel) -> Path:
    """The file of a model folder that its schedules can be written to.

    Args:
        name: of the model as the user has given it; None is the embedded one.
        model: which was opened by it.

    Raises:
        UserError: the model is part of the package, on the hub, or no model folder; what to do is said.
    """
    remedy = f"make a folder of it first: unistep convert {name or model.path} FOLDER"
    if name is None or model.path.resolve() in (EMBEDDED.resolve(), EMBEDDED_TEACHER.resolve()):
        raise UserError(f"--write: the embedded model is part of the package and stays as it is; {remedy}")
    if not Path(name).exists():
        raise UserError(f"--write: {name} is on the hub, not here; {remedy}")
    if not model.path.is_dir():
        raise UserError(f"--write: {name} is a file and has no place for timesteps; {remedy}")
    return schedule_file(model.path)
