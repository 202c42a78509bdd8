"""What edits need of a model, however it was opened."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from unistep.core.denoiser import Denoiser
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.pipelines.consistency_model import ConsistencyModelPipeline

_SHARED = ("sigma_min", "sigma_max", "sigma_data", "rho", "num_train_timesteps", "noise_embedding")


@dataclass(frozen=True)
class EditModel:
    """What editors need of a model, whichever way it was opened.

    Args:
        denoiser: the consistency function.
        info: its noise range and grid.
        shape: channels, height and width of its images.
        num_classes: 0 for an unconditional model; the null class does not count.
        device: where it is.
    """

    denoiser: Denoiser
    info: ModelInfo
    shape: tuple[int, int, int]
    num_classes: int
    device: torch.device


def edit_model(pipe: ConsistencyModelPipeline | LoadedModel) -> EditModel:
    """A pipeline or an opened model, for editing.

    Raises:
        UserError: it is a diffusion model.
    """
    if isinstance(pipe, ConsistencyModelPipeline):
        info = dataclasses.replace(pipe.info, **{name: getattr(pipe.scheduler.config, name) for name in _SHARED})
        config: Any = pipe.unet.config
        size, classes = config.sample_size or 64, (config.num_class_embeds or 0) - (info.null_label is not None)
        return EditModel(precondition(pipe.unet, info), info, (config.in_channels, size, size), classes, pipe.device)
    if pipe.info.kind != "consistency":
        raise UserError(f"{pipe.path} is a diffusion model; edits need a consistency model: distill it")
    device = next(pipe.denoiser.parameters()).device
    return EditModel(pipe.denoiser, pipe.info, pipe.image_shape, pipe.num_classes, device)
