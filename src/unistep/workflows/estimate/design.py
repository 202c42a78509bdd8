"""The stages of a run as far as they follow from the config, without data, weights, or models that are elsewhere."""

from dataclasses import replace
from typing import Any

from torch import nn

from unistep.config import RunConfig
from unistep.data.bundled import BUNDLED
from unistep.data.published import SOURCES
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.networks.lpips import LPIPS
from unistep.objectives.denoising import DenoisingConfig, DenoisingObjective
from unistep.training.engines import Engine
from unistep.workflows.estimate.measure import Parts
from unistep.workflows.runs.build import build_model, build_objective
from unistep.workflows.runs.design import ImageKind, ModelDesign, StageDesign, design_stages
from unistep.workflows.runs.models import check_images, named_models, open_models
from unistep.workflows.runs.network import build_network, shaped_network

_CLASSES = 10  # of data whose number of classes is not known, where a stage needs some


def image_kind(config: RunConfig, model: LoadedModel | None = None) -> ImageKind:
    """The images by what the config tells, else by data that are known, a model that a stage names, or the network.

    Raises:
        UserError: none of them tells their size.
    """
    network, data = config.network, config.data
    row = BUNDLED.get(data.source) or SOURCES.get(data.source)
    if row is not None:
        size, channels, classes, origin = row.size, row.channels, row.num_classes, f"those of {row.name}"
    elif model is not None:
        (channels, size, _), classes, origin = model.image_shape, model.num_classes, "those of the teacher"
    elif network is not None or not config.models:
        images = shaped_network(config, 3, 64, 0) if network is None else network
        size, channels, classes = images.sample_size, images.in_channels, images.num_class_embeds
        origin = "those of the network"
    else:
        size, channels, classes, origin = None, 3, 0, ""
    if data.resolution is not None:
        size, origin = data.resolution, "`data.resolution`"
    if size is None:
        raise UserError("the size of the images is not known before the data are read; set `data.resolution`")
    labels = config.use_labels and data.use_labels
    return ImageKind(size, data.channels or channels, (classes or 0) if labels else 0, origin)


def designed(config: RunConfig) -> tuple[ImageKind, list[StageDesign], list[str]]:
    """Kind of the images and stages of a run, and notes on what was assumed.

    Raises:
        UserError: the config does not tell size or network, or what it asks for does not fit together.
    """
    opened = open_models(config, None, "meta", missing=True)
    images = image_kind(config, next(iter(opened.values()), None))
    for stage, role, name in named_models(config):
        if name in opened:
            check_images(f"`{stage.name}.{role}` {name}", opened[name], images)
    missing = [name for name in config.models if name not in opened]
    if missing and config.network is None:
        raise UserError(f"the network is that of {missing[0]}, which is not here; fetch it, or give a `network`")
    notes = [f"{name} is not here; its network is taken to be the student's" for name in missing]
    if _open_classes(config, images) and not opened and _needs_classes(config):
        images = replace(images, classes=_CLASSES)
        notes.append(f"how many classes there are is not known before the data are read; {_CLASSES} are counted")
    elif _open_classes(config, images):
        notes.append("how many classes there are is not known before the data are read; none are counted")
    models = {name: ModelDesign.of(model) for name, model in opened.items()}
    models |= {name: _supposed(config, images, name) for name in missing}
    return images, design_stages(config, images, models), notes


def _open_classes(config: RunConfig, images: ImageKind) -> bool:
    """Whether the data may have classes whose number the config does not tell."""
    labels = config.use_labels and config.data.use_labels
    return images.classes == 0 and labels and config.data.source not in (*BUNDLED, *SOURCES)


def _needs_classes(config: RunConfig) -> bool:
    """Whether a stage hides labels from its network, or is guided."""
    return any(stage.objective.null_class or stage.objective.guidance != 1 for stage in config.stages)


def _supposed(config: RunConfig, images: ImageKind, name: str) -> ModelDesign:
    """A diffusion model with the network of its students, and a null class where they are guided."""
    network: Any = shaped_network(config, images.channels, images.size, images.classes)
    guided = any(stage.objective.guidance != 1 for stage in config.stages if stage.taught_by == name)
    null_label = network.num_class_embeds if guided else None
    if guided and null_label is None:
        raise UserError("guidance needs class labels, and there are none; set it to 1, or `network.num_class_embeds`")
    if null_label is not None:
        network = replace(network, num_class_embeds=null_label + 1)
    info = ModelInfo("diffusion", sigma_data=config.sigma_data, null_label=null_label, noise_embedding=config.embedding)
    return ModelDesign(network, info, name)


def build_parts(config: RunConfig, design: StageDesign, alone: bool = False, engine: Engine | None = None) -> Parts:
    """The stage with random weights, on the device that is the default.

    Args:
        config: run.
        design: stage.
        alone: whether to leave out all but the student.
        engine: way in which several processes share the teacher; None leaves it whole.
    """
    student = build_model(config, design).train()
    if alone:
        return Parts(student, DenoisingObjective(DenoisingConfig(), config.sigma_data), {})
    others: dict[str, nn.Module] = {}
    if design.teacher is not None:
        teacher = precondition(build_network(design.teacher.network, config.seed), design.teacher.info)
        teacher = teacher.eval().requires_grad_(False)
        others["teacher"] = teacher if engine is None else engine.own_teacher(teacher)
    if design.stage.objective.needs_perceptual:
        others["LPIPS"] = LPIPS()
    objective = build_objective(config, design, student, teacher=others.get("teacher"), perceptual=others.get("LPIPS"))
    if engine is not None and "teacher" in others:
        engine.freeze(others["teacher"])
    return Parts(student, objective, others | objective.networks())
