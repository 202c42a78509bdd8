"""Leftovers of kills and damaged disks in the folder of a stage: half-written files, and models that are not whole."""

import os
import re
import shutil
from pathlib import Path

import torch

from unistep.errors import UserError
from unistep.formats.checkpoint import DamagedCheckpoint, check_whole, clean, load_average
from unistep.formats.model_folder.folder import load_model
from unistep.formats.run_directory import OUTLINE
from unistep.workflows.runs.design import StageDesign
from unistep.workflows.runs.network import built_config

# `.model.1a2b3c4d.tmp` is a folder on its way to its name, `.old` the one that it takes the place of.
_FOLDER = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(tmp|old)")
_FILE = re.compile(r"\..+\.tmp")
# What a later stage, or a sampler, takes from a model's files beside weights and network.
_FIELDS = ("kind", "sigma_min", "sigma_max", "rho", "sigma_data", "null_label", "preconditioning", "noise_embedding")
_FIELDS += ("solver", "steps")


def clean_stage(folder: Path) -> None:
    """Removes what a killed process left half-written in the folder of a stage; what it had replaced comes back.

    Args:
        folder: folder of the stage, which no other process works in.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        match = _FOLDER.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            name = folder / match[1]
            if match[2] == "old" and not name.exists():  # killed between two renamings
                os.replace(path, name)
            else:
                shutil.rmtree(path, ignore_errors=True)
    for place in (folder, folder / "samples", folder / "checkpoints", folder / OUTLINE):
        for path in place.iterdir() if place.is_dir() else ():
            if _FILE.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)
    (folder / "metrics.tmp").unlink(missing_ok=True)  # of former versions
    clean(folder / "checkpoints")


def damage_of(model: Path, design: StageDesign, last: Path | None) -> str:
    """The damage of a stage's model, in words; empty where it is what the stage ended with.

    Args:
        model: model folder.
        design: the stage.
        last: last checkpoint of the stage; None where it is gone.
    """
    try:
        found = load_model(model)
    except UserError as error:
        return str(error)
    except Exception as error:  # whatever a damaged file may raise
        return f"{model} cannot be read ({type(error).__name__})"
    if found.config != built_config(design.network):
        return f"{model / 'unet' / 'config.json'} is not of the stage's network"
    for name in _FIELDS:
        if getattr(found.info, name) != getattr(design.info, name):
            return f"{model / 'scheduler'} has another {name} than the stage"
    if last is None:
        return ""
    # Killed before the model of a longer training was written, or damaged where the file has no digest.
    try:
        average = load_average(last, checked=True)
        weights = found.denoiser.network.state_dict()
        if average.keys() == weights.keys() and all(torch.equal(average[name], weights[name]) for name in weights):
            return ""
        check_whole(last)
    except DamagedCheckpoint:
        return ""
    return f"{model} is not that of the stage's last checkpoint"


def make_room(model: Path) -> None:
    """Renames what has the name of a model and is none to NAME.damaged.

    Args:
        model: file or folder.
    """
    aside = model.with_name(f"{model.name}.damaged")
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)
    os.replace(model, aside)
