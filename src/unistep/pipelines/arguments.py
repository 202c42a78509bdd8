"""The arguments of a pipeline call: checked as diffusers checks them, and in the form that the call needs."""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from unistep.errors import UserError
from unistep.pipelines.output import OutputType
from unistep.pipelines.scheduler import Generator

_log = logging.getLogger("unistep")
_PIL_CHANNELS = (1, 2, 3, 4)  # L, LA, RGB, RGBA


class _LabelError(UserError, AssertionError):
    """A wrong label, where diffusers asserts."""


def check_call(
    shape: tuple[int, ...],
    num_inference_steps: int | None,
    timesteps: Sequence[int] | None,
    sigmas: Sequence[float] | None,
    latents: Tensor | None,
    output_type: str | None,
    callback_steps: int | None,
) -> OutputType:
    """Checks the arguments of a call.

    Args:
        shape: batch size, channels, height, width.
        num_inference_steps: number of network evaluations, or None.
        timesteps: indices of the grid in descending order, or None.
        sigmas: noise levels in descending order, or None.
        latents: unit Gaussian noise to begin with, or None.
        output_type: kind of output.
        callback_steps: number of steps from one call of the callback to the next.

    Returns:
        The kind of output.

    Raises:
        UserError: arguments that contradict each other or the model.
    """
    if isinstance(shape[0], bool) or shape[0] < 1:
        raise UserError(f"`batch_size` is {shape[0]}; it must be a positive integer.")
    if num_inference_steps is None and timesteps is None and sigmas is None:
        raise UserError("Exactly one of `num_inference_steps` or `timesteps` must be supplied (or `sigmas`).")
    if timesteps is not None and sigmas is not None:
        raise UserError("Can only pass one of `timesteps` and `sigmas`.")
    chosen = timesteps if timesteps is not None else sigmas
    if chosen is not None and num_inference_steps not in (None, 1, len(chosen)):
        _log.warning("num_inference_steps %s is not used: %s are the steps", num_inference_steps, list(chosen))
    if latents is not None and tuple(latents.shape) != shape:
        raise UserError(f"The shape of latents is {tuple(latents.shape)} but is expected to be {shape}.")
    if isinstance(callback_steps, bool) or not isinstance(callback_steps, int) or callback_steps <= 0:
        raise UserError(
            f"`callback_steps` has to be a positive integer but is {callback_steps} of type {type(callback_steps)}."
        )
    if output_type not in ("pt", "np", "pil"):
        raise UserError(
            f"output_type={output_type} is not supported. Make sure to choose one of ['pt', 'np', or 'pil']"
        )
    if output_type == "pil" and shape[1] not in _PIL_CHANNELS:
        raise UserError(f"images of {shape[1]} channels are none that PIL has; give output_type='np' or 'pt'")
    return output_type


def class_of_each(
    class_labels: Shaped[Tensor, "..."] | Sequence[int] | int | None,
    classes: int | None,
    batch_size: int,
    generator: Generator,
    device: torch.device,
) -> Int[Tensor, " B"] | None:
    """Returns the class of each image.

    Args:
        class_labels: classes as the caller gives them; None draws them.
        classes: number of classes; None for an unconditional model, which has no labels whatever is given.
        batch_size: number of images.
        generator: generator of the labels, for all images or one an image.
        device: device of the result.

    Raises:
        UserError: labels that are no integers, of another number than the images, or beyond the classes.
    """
    if classes is None:
        return None
    if class_labels is None:
        if isinstance(generator, Sequence):
            labels = torch.cat([_randint(classes, 1, g) for g in generator])
        else:
            labels = _randint(classes, batch_size, generator)
        return labels.to(device)
    if isinstance(class_labels, int) and batch_size != 1:
        raise _LabelError("Batch size must be 1 if classes is an int; give a list, one class an image")
    labels = torch.as_tensor(class_labels).reshape(-1)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"`class_labels` are of type {labels.dtype}; they must be integers")
    if len(labels) != batch_size:
        raise UserError(f"{len(labels)} `class_labels` are given for {batch_size} images; give one an image")
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise UserError(f"`class_labels` {labels.tolist()}: this model has the classes 0 to {classes - 1}")
    return labels.to(device, torch.int64)


def generators(generator: Generator, seeds: Sequence[int] | None, batch_size: int) -> Generator:
    """Returns the generator of all images, or one an image.

    Args:
        generator: generator or generators as the caller gives them.
        seeds: seed of each image instead.
        batch_size: number of images.

    Raises:
        UserError: both are given, or another number of them than of images.
    """
    if seeds is not None:
        if generator is not None:
            raise UserError("Can only pass one of `generator` and `seeds`.")
        generator = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    if isinstance(generator, Sequence) and len(generator) != batch_size:
        what = "seeds" if seeds is not None else "generators"
        raise UserError(
            f"You have passed a list of {what} of length {len(generator)}, but requested an effective batch size of "
            f"{batch_size}. Make sure the batch size matches the length of the {what}."
        )
    return generator


def _randint(high: int, count: int, generator: torch.Generator | None) -> Int[Tensor, " count"]:
    return torch.randint(high, (count,), generator=generator, device=None if generator is None else generator.device)
