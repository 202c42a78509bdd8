"""A consistency model as editors see it."""

from dataclasses import dataclass

import torch

from unistep.core.denoiser import Denoiser, device_of
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo


@dataclass(frozen=True)
class EditModel:
    """A consistency model with its noise range, the shape of its images and its device.

    Args:
        denoiser: consistency function.
        info: noise range and grid.
        shape: channels, height and width of the model's images.
        num_classes: number of classes without the null class; 0 for an unconditional model.
        device: device of the model.
    """

    denoiser: Denoiser
    info: ModelInfo
    shape: tuple[int, int, int]
    num_classes: int
    device: torch.device


def edit_model(model: LoadedModel) -> EditModel:
    """Returns an opened model as editors see it.

    Raises:
        UserError: it is a diffusion model.
    """
    if model.info.kind != "consistency":
        raise UserError(f"{model.path} is a diffusion model; edits need a consistency model: distill it")
    device = device_of(model.denoiser)
    return EditModel(model.denoiser, model.info, model.image_shape, model.num_classes, device)
