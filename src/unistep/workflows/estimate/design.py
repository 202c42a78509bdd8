"""What the stages of a run are made of, as far as it is known before data, teacher and weights are there."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unistep.config import RunConfig, StudentConfig, TeacherConfig
from unistep.data.open import BUNDLED
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.networks.lpips import LPIPS
from unistep.objectives.consistency import ConsistencyConfig
from unistep.objectives.denoising import DenoisingConfig, DenoisingObjective
from unistep.objectives.methods import build_objective, method_name
from unistep.samplers.guidance import Guided
from unistep.workflows.estimate.measure import Parts
from unistep.workflows.models import open_any
from unistep.workflows.parts import (
    Architecture,
    build_network,
    build_teacher,
    shaped_network,
    student_architecture,
    student_info,
    teacher_parts,
)

_MNIST = (28, 1, 10)  # side, channels, classes


@dataclass(frozen=True)
class Images:
    """What a run is to be trained on, as far as it is known without the data; `origin` says from where."""

    size: int
    channels: int
    classes: int
    origin: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.size, self.size


@dataclass(frozen=True)
class Design:
    """What a stage is made of, as long as nothing is built."""

    name: str
    stage: TeacherConfig | StudentConfig
    architecture: Architecture
    info: ModelInfo
    method: str
    teacher: tuple[Architecture, ModelInfo] | None = None


def image_kind(config: RunConfig, teacher: LoadedModel | None = None) -> Images:
    """The images by what the config says, else by the bundled data, a teacher, or the network.

    Raises:
        UserError: none of them tells their size.
    """
    architecture, data = config.architecture, config.data
    if data.source in BUNDLED:
        size, channels, classes, origin = *_MNIST, "those of mnist"
    elif teacher is not None:
        (channels, size, _), classes, origin = teacher.image_shape, teacher.num_classes, "those of the teacher"
    elif architecture is not None:
        size, channels, classes = architecture.sample_size, architecture.in_channels, architecture.num_class_embeds
        origin = "those of the network"
    else:
        size, channels, classes, origin = None, 3, 0, ""
    if data.resolution is not None:
        size, origin = data.resolution, "data.resolution"
    if size is None:
        raise UserError("the size of the images is not known before the data are read; set data.resolution")
    labels = config.use_labels and data.use_labels
    return Images(size, data.channels or channels, (classes or 0) if labels else 0, origin)


def opened_teacher(config: RunConfig) -> tuple[LoadedModel | None, list[str]]:
    """The teacher without its weights, where `teacher_model` names one that is here."""
    name = config.teacher_model
    if name is None:
        return None, []
    if not Path(name).expanduser().exists():
        if config.architecture is None:
            raise UserError(
                f"the network is that of teacher_model {name}, which is not here; fetch it, or give network.* or song.*"
            )
        return None, [f"teacher_model {name} is not here; its network is taken to be the student's"]
    teacher = open_any(name, "meta")
    if teacher.info.kind != "diffusion":
        raise UserError(f"teacher_model {name} is a consistency model; give a diffusion model")
    images = image_kind(config, teacher)
    if teacher.image_shape != images.shape or teacher.num_classes != images.classes:
        raise UserError(
            f"teacher_model {name} makes images of (channels, height, width) {teacher.image_shape} in "
            f"{teacher.num_classes} classes, the recipe's are {images.shape} in {images.classes}; give one that fits"
        )
    return teacher, []


def design_stages(config: RunConfig, images: Images, teacher: LoadedModel | None) -> list[Design]:
    """The stages of a run on such images, in their order.

    Raises:
        UserError: what the config asks for does not fit together.
    """
    architecture = shaped_network(config, images.channels, images.size, images.classes)
    designs = []
    taught = None if teacher is None else (teacher.config, teacher.info)
    if config.teacher is not None:
        assert architecture is not None  # the config sees to it
        taught = teacher_parts(config, architecture)
        designs.append(Design("teacher", config.teacher, *taught, "EDM denoising"))
    if config.student is not None:
        method = config.student.method
        if config.teacher_model is not None and teacher is None:
            assert architecture is not None  # else it was refused
            taught = _supposed_teacher(config, architecture, guided=method.guidance != 1)
        elif teacher is not None:
            build_teacher(teacher, method, torch.device("meta"))  # refuses guidance that there can be none of
        info = student_info(config, config.student, teacher)
        own = student_architecture(config.student, architecture, teacher)
        designs.append(
            Design("student", config.student, own, info, method_name(method), taught if method.needs_teacher else None)
        )
    return designs


def _supposed_teacher(config: RunConfig, architecture: Architecture, guided: bool) -> tuple[Architecture, ModelInfo]:
    """A teacher that is like its student."""
    null_label = architecture.num_class_embeds if guided else None
    if guided and null_label is None:
        raise UserError(
            "guidance needs class labels, and there are none; set guidance to 1, or network.num_class_embeds"
        )
    if null_label is not None:
        architecture = replace(architecture, num_class_embeds=null_label + 1)
    info = ModelInfo("diffusion", sigma_data=config.sigma_data, null_label=null_label, noise_embedding=config.embedding)
    return architecture, info


def build_parts(config: RunConfig, design: Design, alone: bool = False) -> Parts:
    """The stage with random weights, on the device that is the default; `alone` leaves out all but the student."""
    student = precondition(build_network(design.architecture, config.seed), design.info).train()
    stage, others = design.stage, {}
    if alone:
        return Parts(student, DenoisingObjective(DenoisingConfig(), config.sigma_data), others)
    if isinstance(stage, TeacherConfig):
        return Parts(student, DenoisingObjective(stage.objective, config.sigma_data, design.info.null_label), others)
    teacher = None
    if design.teacher is not None:
        architecture, info = design.teacher
        network = precondition(build_network(architecture, config.seed), info).eval().requires_grad_(False)
        others["teacher"] = network
        teacher = (
            network if stage.method.guidance == 1 else Guided(network, stage.method.guidance, info.null_label or 0)
        )
    if isinstance(stage.method, ConsistencyConfig) and stage.method.distance == "lpips":
        others["LPIPS"] = LPIPS()
    try:
        objective = build_objective(
            stage.method,
            stage.steps,
            config.sigma_data,
            student=student,
            teacher=teacher,
            perceptual=others.get("LPIPS"),
        )
    except ValueError as error:
        raise UserError(f"student: {error}") from None
    target: Any = getattr(objective, "target", None)
    if target is not None:
        others["target"] = target
    return Parts(student, objective, others)
