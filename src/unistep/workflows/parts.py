"""What a run is made of: the architecture, the teacher, the student, the objective."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unistep.config import RunConfig, StudentConfig
from unistep.core.denoiser import Denoiser
from unistep.core.parameterization import Preconditioned
from unistep.data import ImageDataset
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.formats.published.lpips import load_lpips
from unistep.networks import table
from unistep.networks.adm_config import UNetConfig
from unistep.networks.patched_config import PatchedUNetConfig
from unistep.networks.song_config import SongUNetConfig
from unistep.networks.table import NetworkConfig as Architecture
from unistep.objectives.consistency import ConsistencyConfig
from unistep.objectives.methods import MethodConfig, build_objective, method_name
from unistep.objectives.progressive import ProgressiveConfig
from unistep.objectives.protocol import Objective
from unistep.samplers.guidance import Guided
from unistep.workflows.models import open_any


def network_config(config: RunConfig, dataset: ImageDataset) -> Architecture | None:
    """The network's config with size, channels and classes of the data; None where it is to be the teacher's.

    Raises:
        UserError: the images are not square, or their size does not fit the network.
    """
    height, width = dataset.image_size
    if height != width:
        raise UserError(f"{config.data.source}: images are {width}x{height}; set data.resolution to make them square")
    classes = dataset.num_classes if config.use_labels else 0
    return shaped_network(config, dataset.channels, height, classes)


def shaped_network(config: RunConfig, channels: int, size: int, classes: int) -> Architecture | None:
    """The network's config for images of `size` pixels; None where it is to be the teacher's.

    Raises:
        UserError: such images do not fit the network.
    """
    chosen = config.architecture
    if chosen is None:
        return None
    try:
        return replace(
            chosen, sample_size=size, in_channels=channels, out_channels=channels, num_class_embeds=classes or None
        )
    except ValueError as error:
        key = "song" if isinstance(chosen, SongUNetConfig) else "network"
        raise UserError(f"{key}: {error}; set data.resolution or another network") from None


def build_network(config: Architecture, seed: int) -> nn.Module:
    """The backbone with random weights drawn from `seed`; the global random state is left as it was."""
    if isinstance(config, PatchedUNetConfig) and config.patch_size == 1:
        config = UNetConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(UNetConfig)})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it would seed the GPUs too
        return table.build_network(config)


def teacher_parts(config: RunConfig, architecture: Architecture) -> tuple[Architecture, ModelInfo]:
    """The architecture of a teacher that is trained here, with its null class, and what is to be known of it.

    Raises:
        UserError: labels are to be dropped and there are none, or augmentation that the network cannot be told of.
    """
    assert config.teacher is not None
    objective = config.teacher.objective
    if objective.label_dropout and not architecture.num_class_embeds:
        raise UserError("teacher.objective.label_dropout needs class labels, and there are none; set it to 0")
    if objective.augment and not (isinstance(architecture, SongUNetConfig) and architecture.augment_dim == 9):
        raise UserError(
            f"teacher.objective.augment {objective.augment:g} needs a network that is told of it; "
            f"set song.augment_dim to 9, or teacher.objective.augment to 0"
        )
    if not objective.augment and isinstance(architecture, SongUNetConfig):
        architecture = replace(architecture, augment_dim=0)  # never told, it would never be trained
    null_label = architecture.num_class_embeds if objective.label_dropout else None
    if null_label is not None:
        architecture = replace(architecture, num_class_embeds=null_label + 1)
    info = ModelInfo(
        "diffusion",
        sigma_data=config.sigma_data,
        null_label=null_label,
        noise_embedding=config.embedding,
        method="EDM denoising",
    )
    return architecture, info


def open_teacher(config: RunConfig, dataset: ImageDataset) -> LoadedModel | None:
    """The model that `teacher_model` names, if it does.

    Raises:
        UserError: there is none, or it does not fit the data or the student.
    """
    if config.teacher_model is None:
        return None
    teacher = open_any(config.teacher_model)
    if teacher.format == "OpenAI .pt" and teacher.method is None:  # neither file nor name tells the kind: the run does
        teacher = open_any(config.teacher_model, kind="diffusion")
    if teacher.info.kind != "diffusion":
        raise UserError(f"teacher_model {config.teacher_model} is a consistency model; give a diffusion model")
    image = (dataset.channels, *dataset.image_size)
    classes = dataset.num_classes if config.use_labels else 0
    if teacher.image_shape != image:
        raise UserError(
            f"teacher_model {config.teacher_model} makes images of (channels, height, width) {teacher.image_shape}, "
            f"the data {image}; give one that fits, or set data.resolution and data.channels"
        )
    if teacher.num_classes != classes:
        instead = "set use_labels to false" if not teacher.num_classes else "give one that fits"
        raise UserError(
            f"teacher_model {config.teacher_model} has a number of classes of {teacher.num_classes}, "
            f"the data {classes}; {instead}"
        )
    return teacher


def build_teacher(teacher: LoadedModel, method: MethodConfig, device: torch.device) -> Denoiser:
    """The teacher as the objective calls it, guided where the config says so.

    Raises:
        UserError: guidance by a teacher without a null class.
    """
    denoiser = teacher.denoiser.to(device)
    if method.guidance == 1:
        return denoiser
    if teacher.info.null_label is None:
        raise UserError(
            f"guidance {method.guidance:g} of the student needs a teacher with a null class; "
            f"train one with teacher.objective.label_dropout, or set guidance to 1"
        )
    return Guided(denoiser, method.guidance, teacher.info.null_label)


def student_info(config: RunConfig, stage: StudentConfig, teacher: LoadedModel | None = None) -> ModelInfo:
    """What is to be known of a student, beside its weights."""
    method = stage.method
    like_teacher = stage.from_teacher or (config.architecture is None and config.noise_embedding is None)
    embedding = teacher.info.noise_embedding if like_teacher and teacher is not None else config.embedding
    shared: dict[str, Any] = {
        "sigma_min": method.sigma_min,
        "sigma_max": method.sigma_max,
        "rho": method.rho,
        "sigma_data": config.sigma_data,
        "noise_embedding": embedding,
        "method": method_name(method),
    }
    if isinstance(method, ProgressiveConfig):
        return ModelInfo("diffusion", solver="progressive", steps=method.end_scales, **shared)
    return ModelInfo("consistency", num_train_timesteps=stage.num_train_timesteps, timesteps=stage.timesteps, **shared)


def student_architecture(
    stage: StudentConfig, architecture: Architecture | None, teacher: LoadedModel | None
) -> Architecture:
    """The student's network: `architecture`, or the teacher's where that is None, with the stage's dropout.

    Raises:
        UserError: there is neither.
    """
    if architecture is None:
        if teacher is None:
            raise UserError("the student's network is neither given nor a teacher's; set `network` or `song`")
        architecture = replace(teacher.config, num_class_embeds=teacher.num_classes or None)
    if isinstance(architecture, SongUNetConfig):  # students see every label, and no augmented images
        architecture = replace(architecture, label_dropout=0.0, augment_dim=0)
    return architecture if stage.dropout is None else replace(architecture, dropout=stage.dropout)


def build_student(
    config: RunConfig, stage: StudentConfig, architecture: Architecture | None, teacher: LoadedModel | None
) -> tuple[Preconditioned, ModelInfo]:
    """The student, from the teacher's weights where the config says so.

    Args:
        config: of the run.
        stage: of the student.
        architecture: its network; None is the teacher's.
        teacher: where there is one.

    Raises:
        UserError: it cannot begin as the teacher.
    """
    info = student_info(config, stage, teacher)
    network = build_network(student_architecture(stage, architecture, teacher), config.seed)
    if stage.from_teacher and teacher is not None:
        _check_beginning(config, teacher)
        _check_same_network(network.config, teacher)  # pyright: ignore[reportArgumentType]
        network.load_state_dict(_student_weights(teacher))
    return precondition(network, info), info


def _check_beginning(config: RunConfig, teacher: LoadedModel) -> None:
    """A network does as a student what it did as a teacher only if it is told and scaled alike."""
    info = teacher.info
    if info.preconditioning != "edm":
        raise UserError(
            f"a student cannot begin as {teacher.path}, whose scalings are those of {info.preconditioning}; "
            "set student.from_teacher to false, and give it a `network` or `song`"
        )
    if info.sigma_data != config.sigma_data:
        raise UserError(
            f"the teacher {teacher.path} has sigma_data {info.sigma_data:g}, the run {config.sigma_data:g}; "
            f"set sigma_data to {info.sigma_data:g}"
        )


# What a student may have otherwise than its teacher: its weights are the same.
_FREE = {"num_class_embeds", "dropout", "label_dropout", "augment_dim", "sample_size"}


def _check_same_network(config: Architecture, teacher: LoadedModel) -> None:
    """Refuses another network, and the same weights used in another way: groups of a norm show in no shape."""
    ours, theirs = ({"patch_size": 1} | dataclasses.asdict(c) for c in (config, teacher.config))
    for values in (ours, theirs):
        if values.get("resnet_time_scale_shift") == "default" and values["attn_norm_num_groups"] is None:
            values["attn_norm_num_groups"] = values["norm_num_groups"]
    if ours.keys() != theirs.keys():
        what = "kind"
    else:
        what = ", ".join(name for name in ours if name not in _FREE and ours[name] != theirs[name])
    if what:
        raise UserError(
            f"the student's network differs from the teacher's ({teacher.path}) in {what}; leave out `network` and "
            "`song`, or set student.from_teacher to false"
        )


def _student_weights(teacher: LoadedModel) -> Mapping[str, Tensor]:
    """The teacher's weights, less what a student does not have: the null class, and an ear for augmentations."""
    weights = teacher.denoiser.network.state_dict()
    weights.pop("map_augment.weight", None)
    null = teacher.info.null_label
    if null is None:
        return weights
    name = next(n for n in weights if n.endswith(("class_embedding.weight", "map_label.weight")))
    if name.endswith("class_embedding.weight"):
        weights[name] = weights[name][:null]
    else:  # one-hot vectors are scaled by the root of the number of classes, which is one less now
        weights[name] = weights[name][:, :null] * ((null + 1) / null) ** 0.5
    return weights


def student_objective(
    config: RunConfig, stage: StudentConfig, student: nn.Module, teacher: LoadedModel | None, device: torch.device
) -> Objective:
    """The objective of the student stage.

    Raises:
        UserError: the teacher cannot guide, the perceptual distance's weights are missing, or the run is too short.
    """
    method = stage.method
    perceptual = None
    if isinstance(method, ConsistencyConfig) and method.distance == "lpips":
        perceptual = load_lpips(config.lpips.vgg, config.lpips.heads).to(device)
    try:
        return build_objective(
            method,
            stage.steps,
            config.sigma_data,
            student=student,
            teacher=build_teacher(teacher, method, device) if teacher is not None and method.needs_teacher else None,
            perceptual=perceptual,
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"student: {error}") from None
