"""Directories of training runs: the models that their stages ended in."""

from pathlib import Path

import torch

from unistep.errors import UserError
from unistep.formats.location import Location
from unistep.formats.model import LoadedModel
from unistep.formats.model_folder.files import INDEX
from unistep.formats.model_folder.folder import load_model

STAGES = ("student", "teacher")
"""Folders of a run's stages; the first that has a model is the run's."""

_CONFIG = "config.yaml"


def is_run(location: Location) -> bool:
    """Returns whether there is a run, or a stage that has ended."""
    path = location.path
    return location.is_folder and ((path / _CONFIG).exists() or _model_of(path) is not None)


def load_run(path: Path, device: torch.device | str = "cpu", *, variant: str | None = None) -> LoadedModel:
    """Opens the model of a run.

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


def _model_of(path: Path) -> Path | None:
    """The model folder that a run or a stage ended in; None if there is none."""
    places = (path / "model", *(path / stage / "model" for stage in STAGES))
    return next((place for place in places if (place / INDEX).exists()), None)
