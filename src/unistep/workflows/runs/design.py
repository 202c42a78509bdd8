"""The parts of the stages of a run, chosen before any weight is there.

All that does not fit together is refused here, so that it is refused before anything is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unistep.config import RunConfig, StageConfig
from unistep.config.values import plain
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo, num_classes
from unistep.networks.table import NetworkConfig
from unistep.objectives.methods import method_name
from unistep.workflows.runs.network import shaped_network


@dataclass(frozen=True)
class ImageKind:
    """Shape of the images of a run.

    Args:
        size: side in pixels.
        channels: number of channels.
        classes: number of classes; 0 is unconditional.
        origin: source of the size, in words.
        class_names: name of each class; empty where they have none but their numbers.
    """

    size: int
    channels: int
    classes: int
    origin: str = "those of the data"
    class_names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.size, self.size


@dataclass(frozen=True)
class ModelDesign:
    """A model without its weights.

    Args:
        network: architecture.
        info: noise range, scalings and kind.
        name: name of the model in messages.
    """

    network: NetworkConfig
    info: ModelInfo
    name: str

    @classmethod
    def of(cls, model: LoadedModel) -> "ModelDesign":
        """The design of a model that is there."""
        return cls(model.config, model.info, str(model.path))

    @property
    def num_classes(self) -> int:
        """Number of classes, the null class not counted; 0 is unconditional."""
        return num_classes(self.network, self.info)


@dataclass(frozen=True)
class StageDesign:
    """A stage without its weights.

    Args:
        stage: its config.
        network: architecture of the model that is trained.
        info: noise range, scalings and kind of that model.
        init: model that it begins from; None is random weights.
        teacher: diffusion model that the loss evaluates; None where it evaluates none.
    """

    stage: StageConfig
    network: NetworkConfig
    info: ModelInfo
    init: ModelDesign | None
    teacher: ModelDesign | None

    @property
    def model(self) -> ModelDesign:
        """The model that the stage ends with."""
        return ModelDesign(self.network, self.info, self.stage.name)


def design_stages(config: RunConfig, images: ImageKind, models: Mapping[str, ModelDesign]) -> list[StageDesign]:
    """The stages of a run, in their order.

    Args:
        config: run.
        images: images that it is trained on.
        models: designs of the models that the stages name and the run does not train.

    Raises:
        UserError: images, network, models and methods do not fit each other.
    """
    known = dict(models)
    designs = []
    for stage in config.stages:
        design = _design(config, stage, images, known.get(stage.init or ""), known.get(stage.taught_by or ""))
        known[stage.name] = design.model
        designs.append(design)
    return designs


def _design(
    config: RunConfig, stage: StageConfig, images: ImageKind, init: ModelDesign | None, teacher: ModelDesign | None
) -> StageDesign:
    method, like = stage.objective, init or teacher
    if config.network is None and like is not None:
        network: Any = replace(like.network, num_class_embeds=like.num_classes or None)
    else:
        network = shaped_network(config, images.channels, images.size, images.classes)
    null_label = _null_label(stage, network)
    if null_label is not None:
        network = replace(network, num_class_embeds=null_label + 1)
    network = _with_fields(stage, network)
    # A model that begins as another, or has its network, has its input for a noise level too.
    alike = init or (teacher if config.network is None and config.noise_embedding is None else None)
    info = stage.objective.model() | {
        "sigma_data": config.sigma_data,
        "null_label": null_label,
        "noise_embedding": config.embedding if alike is None else alike.info.noise_embedding,
        "method": method_name(method),
    }
    if stage.kind == "diffusion" and like is not None:
        info |= {"clip": like.info.clip}  # sampled as the model that it continues
    if len(images.class_names) == (network.num_class_embeds or 0) - (null_label is not None):
        info["class_names"] = images.class_names
    if stage.kind == "consistency":
        info |= {name: getattr(stage, name) for name in ("num_train_timesteps", "timesteps", "schedules")}
    if teacher is not None and method.guidance != 1 and teacher.info.null_label is None:
        raise UserError(
            f"`{stage.name}.objective.guidance` {method.guidance:g} needs a teacher with a null class; "
            "train one with label_dropout, or set it to 1"
        )
    if init is not None:
        check_beginning(config, stage, network, null_label, init)
    return StageDesign(stage, network, ModelInfo(**info), init, teacher if method.needs_teacher else None)


def _null_label(stage: StageConfig, network: NetworkConfig) -> int | None:
    if not stage.objective.null_class:
        return None
    if not network.num_class_embeds:
        raise UserError(f"`{stage.name}.objective.label_dropout` needs class labels, and there are none; set it to 0")
    return network.num_class_embeds


def _with_fields(stage: StageConfig, network: NetworkConfig) -> NetworkConfig:
    """The network with the fields that the method and the stage decide."""
    fields = {"end_embedding": False, "guidance_embedding": False} | stage.objective.network()
    for name in ("end_embedding", "guidance_embedding"):
        if fields[name] and not hasattr(network, name):
            raise UserError(
                f"`{stage.name}.method` {stage.method} needs a network with a field {name}", "choose another network"
            )
    if (needed := fields["augment_dim"]) and getattr(network, "augment_dim", 0) != needed:
        raise UserError(
            f"`{stage.name}.objective.augment` {stage.objective.augment:g} needs a network with inputs for it; "
            f"set `network.name` to song and `network.augment_dim` to {needed}, or it to 0"
        )
    if stage.dropout is not None:
        fields["dropout"] = stage.dropout
    own: Any = network
    return replace(own, **{name: value for name, value in fields.items() if hasattr(own, name)})


# Fields that a model may have otherwise than the one it begins from: its weights are the same.
_FREE = {
    "num_class_embeds",
    "dropout",
    "label_dropout",
    "augment_dim",
    "sample_size",
    "end_embedding",
    "guidance_embedding",
}


def check_beginning(
    config: RunConfig, stage: StageConfig, network: NetworkConfig, null_label: int | None, init: ModelDesign
) -> None:
    """Refuses to begin from a model that computes something else with the same weights.

    Raises:
        UserError: its scalings, its data's deviation, its network or its classes differ.
    """
    key = f"`{stage.name}.init`"
    if init.info.preconditioning != "edm":
        raise UserError(
            f"{key} {init.name} cannot be begun from: its scalings are those of {init.info.preconditioning}; "
            f"set {key} to null, and give a `network`"
        )
    if init.info.sigma_data != config.sigma_data:
        raise UserError(
            f"{key} {init.name} has sigma_data {init.info.sigma_data:g}, the run {config.sigma_data:g}; "
            f"set `sigma_data` to {init.info.sigma_data:g}"
        )
    if null_label is not None and init.info.null_label is None:
        raise UserError(f"{key} {init.name} has no null class; set `{stage.name}.objective.label_dropout` to 0")
    ours, theirs = ({"patch_size": 1} | plain(c) for c in (network, init.network))
    for values in (ours, theirs):  # a default that depends on another field
        if values.get("resnet_time_scale_shift") == "default" and values["attn_norm_num_groups"] is None:
            values["attn_norm_num_groups"] = values["norm_num_groups"]
    # Groups of a norm, for one, show in no shape of a weight.
    differing = [name for name in ours if name not in _FREE and ours[name] != theirs.get(name)]
    if ours.keys() != theirs.keys() or differing:
        what = ", ".join(differing) if ours.keys() == theirs.keys() else "kind"
        raise UserError(
            f"the network of stage {stage.name} differs from that of {init.name} in {what}; leave out `network`, "
            f"or set {key} to null"
        )
