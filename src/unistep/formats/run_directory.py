"""Directories of training runs: the models that their stages ended in, or have come to.

A stage that has not ended has checkpoints, and beside them the outline of a model folder (`checkpoints/outline/`): with
the averaged weights of the newest checkpoint it is a model.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unistep.documents import read_yaml
from unistep.errors import UserError
from unistep.files import check_no_stand_in
from unistep.formats.checkpoint import checkpoint_path, checkpoint_steps, load_average, whole_checkpoint
from unistep.formats.location import Location
from unistep.formats.model import LoadedModel
from unistep.formats.model_folder.files import INDEX
from unistep.formats.model_folder.folder import load_model, load_outline
from unistep.formats.model_folder.schedule import read_info

OUTLINE = Path("checkpoints", "outline")
"""Outline of a stage's model, below the stage's folder."""

_CONFIG = "config.yaml"


def is_run(location: Location) -> bool:
    """Returns whether a folder is a run, or a stage that has come to a model."""
    path = location.path
    return location.is_folder and ((path / _CONFIG).exists() or _stage_with_model(path) is not None)


def load_run(path: Path, device: torch.device | str = "cpu", *, variant: str | None = None) -> LoadedModel:
    """Opens the model of a run's last stage that has come to one.

    Args:
        path: run directory, or the folder of one of its stages.
        device: device of the model.
        variant: variant of the weights, as "fp16".

    Raises:
        UserError: the run has no model yet, or the model is damaged.
    """
    stage = _stage_with_model(path)
    if stage is None:
        check_no_stand_in(path / _CONFIG)
        raise UserError(f"{path} is a run without a checkpoint yet; resume its training")
    if (stage / "model" / INDEX).exists() and not _is_longer(stage):
        return load_model(stage / "model", device, variant=variant)
    if variant is not None:
        raise UserError(f"`variant` {variant} is for a finished model, and {stage} is not finished; leave it out")
    return _of_checkpoint(stage, device)


def stage_names(run: Path) -> list[str]:
    """Names of a run's stages, in their order.

    Args:
        run: run directory.
    """
    return list(_stages(run)) or ["teacher", "student"]


def newest_diffusion_stage(run: Path) -> Path | None:
    """Folder of a run's last finished stage that has a diffusion model; None where there is none.

    Args:
        run: run directory.
    """
    for name in reversed(stage_names(run)):
        file = run / name / "model" / "scheduler" / "scheduler_config.json"
        if file.is_file() and read_info(file, diffusers_network=False).kind == "diffusion":
            return run / name
    return None


def _stage_with_model(path: Path) -> Path | None:
    """The stage that a path is, or the last one of a run, that has a model or is on the way to one."""
    for stage in (path, *(path / name for name in reversed(stage_names(path)))):
        if (stage / "model" / INDEX).exists():
            return stage
        if (stage / OUTLINE / INDEX).exists() and checkpoint_steps(stage / "checkpoints"):
            return stage
    return None


def _is_longer(stage: Path) -> bool:
    """Whether a stage that has ended was made longer since, so that its model is the older one."""
    total, done = _steps(stage), checkpoint_steps(stage / "checkpoints")
    return bool(done) and total is not None and done[-1] < total and (stage / OUTLINE / INDEX).exists()


def _steps(stage: Path) -> int | None:
    """Length of a stage by the run's config; None where it does not say."""
    total = _stages(stage.parent).get(stage.name, {}).get("steps")
    return total if isinstance(total, int) else None


def _of_checkpoint(stage: Path, device: torch.device | str) -> LoadedModel:
    """The averaged weights of a stage's newest checkpoint that is whole; without weights simply of the newest."""
    meta, folder = torch.device(device).type == "meta", stage / "checkpoints"
    file = (None if meta else whole_checkpoint(folder)) or checkpoint_path(folder, checkpoint_steps(folder)[-1])
    step, total = int(file.stem.removeprefix("step-")), _steps(stage)
    model = load_outline(stage / OUTLINE, {} if meta else load_average(file, checked=True), device)
    of = "" if total is None else f" of {total:,}"
    note = f"{stage} is not finished: this is its newest checkpoint, of step {step:,}{of}"
    return replace(model, path=file, format="checkpoint of a run", notes=(note,))


def _stages(run: Path) -> dict[str, dict[str, Any]]:
    """The stages in a run's config, by name; none where it cannot be read."""
    try:
        values = read_yaml(run / _CONFIG, "")
    except UserError:
        values = None
    if not isinstance(values, dict):
        return {}
    # Runs of before stages had names had these two keys.
    stages = values.get("stages", {name: values.get(name) for name in ("teacher", "student")})
    stages = stages if isinstance(stages, dict) else {}
    return {str(name): stage if isinstance(stage, dict) else {} for name, stage in stages.items()}
