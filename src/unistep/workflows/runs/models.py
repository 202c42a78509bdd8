"""The models that the stages of a run name and the run does not train."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from unistep.checks import user_path
from unistep.config import RunConfig, StageConfig
from unistep.errors import UserError
from unistep.formats.exported.model import check_weights
from unistep.formats.model import LoadedModel
from unistep.formats.run_directory import newest_diffusion_stage
from unistep.text import shown
from unistep.workflows.models import open_any
from unistep.workflows.runs.design import ImageKind

_log = logging.getLogger("unistep")


def open_models(
    config: RunConfig, images: ImageKind | None, device: torch.device | str = "cpu", *, missing: bool = False
) -> dict[str, LoadedModel]:
    """Opens every model once.

    Args:
        config: run.
        images: images that the models have to be of; None checks nothing.
        device: device of their weights; "meta" reads none.
        missing: whether to leave out those that are not here, instead of fetching or refusing them.

    Returns:
        Models by the names that the stages have for them.

    Raises:
        UserError: there is no such model, or it does not fit its role or the images.
    """
    opened: dict[str, LoadedModel] = {}
    for stage, role, name in named_models(config):
        if missing and not user_path(name).exists():
            continue
        if name not in opened:
            opened[name] = _open(config, stage, role, name, device)
        _check_role(stage, role, name, opened)
        if images is not None:
            check_images(f"`{stage.name}.{role}` {name}", opened[name], images)
            warn_of_other_names(f"`{stage.name}.{role}` {name}", opened[name], images)
    return opened


def named_models(config: RunConfig) -> list[tuple[StageConfig, str, str]]:
    """(stage, role, name) of every model that a stage names and the run does not train; teachers come first."""
    own = {stage.name for stage in config.stages}
    pairs = [(stage, "teacher", stage.taught_by) for stage in config.stages]
    pairs += [(stage, "init", stage.init) for stage in config.stages]
    return [(stage, role, name) for stage, role, name in pairs if name is not None and name not in own]


def check_images(what: str, model: LoadedModel, images: ImageKind) -> None:
    """Refuses a model of other images.

    Raises:
        UserError: their shape or their number of classes differs.
    """
    if model.image_shape != images.shape:
        raise UserError(
            f"{what} makes images of (channels, height, width) {model.image_shape}, the data {images.shape}; "
            "give one that fits, or set `data.resolution` and `data.channels`"
        )
    if model.num_classes != images.classes:
        instead = "set `use_labels` to false" if not model.num_classes else "give one that fits"
        raise UserError(f"{what} has a number of classes of {model.num_classes}, the data {images.classes}; {instead}")


def warn_of_other_names(what: str, model: LoadedModel, images: ImageKind) -> None:
    """Warns where the classes of a model are called otherwise than those of the data."""
    pairs = zip(model.info.class_names, images.class_names, strict=False)
    differing = [(number, *pair) for number, pair in enumerate(pairs) if pair[0] != pair[1]]
    if differing:
        number, theirs, ours = differing[0]
        _log.warning(
            "%s calls %d classes otherwise than the data: class %d is %s there and %s here",
            *(what, len(differing), number, shown(theirs), shown(ours)),
        )


def _open(config: RunConfig, stage: StageConfig, role: str, name: str, device: torch.device | str) -> LoadedModel:
    if stage.published_at.endswith(f"/{Path(name).name}") and not user_path(name).exists():
        raise UserError(
            f"`{stage.name}.{role}` {name} does not exist; fetch it from {stage.published_at}, "
            "or name another model by `teacher`"
        )
    path = user_path(name)
    if role == "teacher" and path.is_dir():
        name = str(newest_diffusion_stage(path) or name)
    model = open_any(name, device)
    if model.format == "OpenAI .pt" and model.method is None:  # neither file nor name tells the kind: the run does
        model = open_any(name, device, kind="diffusion")
    check_weights(model)
    return model


def _check_role(stage: StageConfig, role: str, name: str, opened: Mapping[str, LoadedModel]) -> None:
    if role == "teacher" and opened[name].info.kind != "diffusion":
        raise UserError(f"`{stage.name}.teacher` {name} is a consistency model; give a diffusion model")
