"""Models and objectives of the stages, from their designs."""

import re
from collections.abc import Collection

from torch import Tensor, nn

from unistep.config import RunConfig
from unistep.core.denoiser import Denoiser
from unistep.core.parameterization import Preconditioned
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, precondition
from unistep.formats.published.lpips import load_lpips
from unistep.networks.block import recompute_blocks
from unistep.objectives.protocol import Distance, Objective, ObjectiveInputs
from unistep.samplers.guidance import Guided
from unistep.workflows.runs.design import StageDesign
from unistep.workflows.runs.network import build_network

_FURTHER = re.compile(r"(^|\.)(end_embedding|guidance_embedding|map_end|map_guidance)\.")


def build_model(config: RunConfig, design: StageDesign, init: LoadedModel | None = None) -> Preconditioned:
    """The model that a stage trains, before its first step.

    Args:
        config: run.
        design: stage.
        init: model whose weights it begins with; None is random ones.

    Raises:
        UserError: it has no blocks whose activations can be computed again, where the run asks for it.
    """
    network = build_network(design.network, config.seed)
    if init is not None:
        own = network.state_dict()
        weights = beginning_weights(init, design.info.null_label, own.keys())
        # Inputs that the other model does not have begin as they are made: without effect.
        further = {name: value for name, value in own.items() if _FURTHER.search(name)}
        network.load_state_dict(further | weights)
    if config.activation_checkpointing and not recompute_blocks(network):
        raise UserError(
            f"`activation_checkpointing`: {type(network).__name__} of `{design.stage.name}` has no blocks that can be "
            "computed again",
            "set it to false",
        )
    return precondition(network, design.info)


def beginning_weights(init: LoadedModel, null_label: int | None, names: Collection[str]) -> dict[str, Tensor]:
    """Weights of a model for one that begins from it: without the null class and the inputs that it does not have.

    Args:
        init: model that is begun from.
        null_label: null class of the new model; None where it has none.
        names: names of the new model's weights.
    """
    weights = {name: value for name, value in init.denoiser.network.state_dict().items() if name in names}
    null = init.info.null_label
    if null is None or null_label is not None:
        return weights
    name = next(n for n in weights if n.endswith(("class_embedding.weight", "map_label.weight")))
    if name.endswith("class_embedding.weight"):
        weights[name] = weights[name][:null]
    else:  # one-hot vectors are scaled by the root of the number of classes, which is one less now
        weights[name] = weights[name][:, :null] * ((null + 1) / null) ** 0.5
    return weights


def build_teacher(design: StageDesign, teacher: Denoiser) -> Denoiser:
    """The teacher as the objective calls it, guided where the method has guidance.

    Args:
        design: stage that it teaches.
        teacher: diffusion model.
    """
    guidance = design.stage.objective.guidance
    if guidance == 1:
        return teacher
    assert design.teacher is not None and design.teacher.info.null_label is not None  # the design sees to it
    return Guided(teacher, guidance, design.teacher.info.null_label)


def open_perceptual(config: RunConfig) -> nn.Module:
    """LPIPS, with the run's files.

    Raises:
        UserError: they cannot be had.
    """
    return load_lpips(config.lpips.vgg, config.lpips.heads)


def build_objective(
    config: RunConfig,
    design: StageDesign,
    student: nn.Module,
    *,
    teacher: Denoiser | None = None,
    perceptual: Distance | None = None,
) -> Objective:
    """The objective of a stage.

    Args:
        config: run.
        design: stage.
        student: network to be trained, on its device.
        teacher: diffusion model, on the same device; needed where the design has one.
        perceptual: distance "lpips", on the same device; needed where the method has it.

    Raises:
        UserError: the run is too short for the method.
    """
    inputs = ObjectiveInputs(
        student,
        design.stage.steps,
        config.sigma_data,
        teacher=None if teacher is None or design.teacher is None else build_teacher(design, teacher),
        null_label=design.info.null_label,
        perceptual=perceptual,
    )
    try:
        objective = design.stage.objective.build(inputs)
        for critic in objective.critics().values() if config.activation_checkpointing else ():
            recompute_blocks(critic.network)
        return objective
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"`{design.stage.name}`: {error}") from None
