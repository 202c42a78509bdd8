"""Directories of training runs: the models that their stages ended in."""

from pathlib import Path

import torch
import yaml

from unistep.errors import UserError
from unistep.formats.location import Location
from unistep.formats.model import LoadedModel
from unistep.formats.model_folder.files import INDEX
from unistep.formats.model_folder.folder import load_model
from unistep.formats.model_folder.schedule import read_info

_CONFIG = "config.yaml"


def is_run(location: Location) -> bool:
    """Returns whether there is a run, or a stage that has ended."""
    path = location.path
    return location.is_folder and ((path / _CONFIG).exists() or _model_of(path) is not None)


def load_run(path: Path, device: torch.device | str = "cpu", *, variant: str | None = None) -> LoadedModel:
    """Opens the model of a run's last stage that has one.

    Args:
        path: run directory, or the folder of one of its stages.
        device: device of the model.
        variant: variant of the weights, as "fp16".

    Raises:
        UserError: the run has no model yet, or the model is damaged.
    """
    folder = _model_of(path)
    if folder is None:
        raise UserError(f"{path} is a run without a finished model", "resume its training")
    return load_model(folder, device, variant=variant)


def stage_names(run: Path) -> list[str]:
    """Names of a run's stages, in their order.

    Args:
        run: run directory.
    """
    try:
        values = yaml.safe_load((run / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        values = None
    stages = values.get("stages") if isinstance(values, dict) else None
    # Runs of before stages had names had these two.
    return [str(name) for name in stages] if isinstance(stages, dict) else ["teacher", "student"]


def newest_diffusion_stage(run: Path) -> Path | None:
    """Folder of a run's last stage that has a diffusion model; None where there is none.

    Args:
        run: run directory.
    """
    for name in reversed(stage_names(run)):
        file = run / name / "model" / "scheduler" / "scheduler_config.json"
        if file.is_file() and read_info(file, diffusers_network=False).kind == "diffusion":
            return run / name
    return None


def _model_of(path: Path) -> Path | None:
    """The model folder that a run or a stage ended in; None if there is none."""
    places = (path / "model", *(path / stage / "model" for stage in reversed(stage_names(path))))
    return next((place for place in places if (place / INDEX).exists()), None)
