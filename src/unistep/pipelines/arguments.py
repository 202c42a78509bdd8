"""The arguments of a pipeline call: checked as diffusers checks them, and in the form that the call needs."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unistep.errors import UserError
from unistep.pipelines.frozen import SchedulerConfig
from unistep.pipelines.noise import Generator
from unistep.pipelines.numbers import Numbers, Whole, as_list, is_whole
from unistep.pipelines.output import OutputType
from unistep.samplers.consistency import check_sigmas

Labels = Numbers | Whole | str | Sequence[int | str] | None
"""Classes as callers give them; texts are names that the model has for its classes."""

Seeds = torch.Generator | Sequence[Any] | Whole | None
"""Generators, or seeds of them, as callers give them."""

_log = logging.getLogger("unistep")
_PIL_CHANNELS = (1, 2, 3, 4)  # L, LA, RGB, RGBA


class _LabelError(UserError, AssertionError):
    """A wrong label, where diffusers asserts."""


def check_call(
    shape: tuple[int, ...],
    num_inference_steps: Any,
    timesteps: Any,
    sigmas: Any,
    latents: Tensor | None,
    output_type: str | None,
    callback: Any,
    callback_steps: Any,
) -> OutputType:
    """Checks the arguments of a call.

    Args:
        shape: batch size, channels, height, width.
        num_inference_steps: number of network evaluations, or None.
        timesteps: indices of the grid in descending order, or None.
        sigmas: noise levels in descending order, or None.
        latents: unit Gaussian noise to begin with, or None.
        output_type: kind of output.
        callback: function that is called after steps, or None.
        callback_steps: number of steps from one call of the callback to the next.

    Returns:
        The kind of output.

    Raises:
        UserError: arguments that contradict each other or the model.
    """
    if num_inference_steps is None and timesteps is None and sigmas is None:
        raise UserError("Exactly one of `num_inference_steps` or `timesteps` must be supplied (or `sigmas`).")
    if timesteps is not None and sigmas is not None:
        raise UserError("Can only pass one of `timesteps` and `sigmas`.")
    if timesteps is not None or sigmas is not None:
        chosen = as_list("timesteps", timesteps) if timesteps is not None else as_list("sigmas", sigmas)
        if num_inference_steps not in (None, 1, len(chosen)):
            _log.warning("num_inference_steps %s is not used: %s are the steps", num_inference_steps, chosen)
    if latents is not None and not isinstance(latents, Tensor):
        raise UserError(f"`latents` is a {type(latents).__name__}; give a tensor, as of `torch.as_tensor`")
    if latents is not None and tuple(latents.shape) != shape:
        raise UserError(f"The shape of latents is {tuple(latents.shape)} but is expected to be {shape}.")
    if not is_whole(callback_steps) or int(callback_steps) < 1:
        raise UserError(
            f"`callback_steps` has to be a positive integer but is {callback_steps} of type {type(callback_steps)}."
        )
    if callback is not None and not callable(callback):
        raise UserError(f"`callback` is a {type(callback).__name__}; give a function of step, timestep and images")
    if output_type not in ("pt", "np", "pil"):
        raise UserError(
            f"output_type={output_type} is not supported. Make sure to choose one of ['pt', 'np', or 'pil']"
        )
    if output_type == "pil" and shape[1] not in _PIL_CHANNELS:
        raise UserError(f"images of {shape[1]} channels are none that PIL has; give output_type='np' or 'pt'")
    return output_type


def check_begin(timesteps: Any, sigmas: Any, config: SchedulerConfig) -> None:
    """Refuses a schedule that does not begin at sigma_max, where the noise of a call is.

    Args:
        timesteps: indices of the grid in descending order, or None.
        sigmas: noise levels in descending order, or None.
        config: noise range of the scheduler.

    Raises:
        UserError: it begins elsewhere.
    """
    if sigmas is not None:
        check_sigmas(as_list("sigmas", sigmas), config.sigma_max)
    elif timesteps is not None and (listed := [int(t) for t in as_list("timesteps", timesteps)])[-1] != 0:
        raise UserError(
            f"`timesteps` {listed} must end with 0, the index of sigma_max {config.sigma_max:g}, where the "
            f"noise begins: {[*listed, 0]}?"
        )


def class_of_each(
    class_labels: Any,
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
    if is_whole(class_labels) and batch_size != 1 and not isinstance(class_labels, Tensor):
        raise _LabelError("Batch size must be 1 if classes is an int; give a list, one class an image")
    try:
        labels = torch.as_tensor(class_labels).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"`class_labels` {class_labels!r} are no integers; give a list of them") from None
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"`class_labels` are of type {labels.dtype}; they must be integers")
    if len(labels) != batch_size:
        raise UserError(f"{len(labels)} `class_labels` are given for {batch_size} images; give one an image")
    labels = labels.to(torch.int64)
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise UserError(f"`class_labels` {labels.tolist()}: this model has the classes 0 to {classes - 1}")
    return labels.to(device)


def generators(generator: Any, seeds: Any, batch_size: int) -> Generator:
    """Returns the generator of all images, or one an image.

    Args:
        generator: generator or generators as the caller gives them, or seeds of them.
        seeds: seed of each image instead.
        batch_size: number of images.

    Raises:
        UserError: both are given, another number of them than of images, or something else.
    """
    if seeds is None:
        field, given = "generator", generator
    elif generator is not None:
        raise UserError("Can only pass one of `generator` and `seeds`.")
    elif is_whole(seeds):
        if batch_size != 1:
            raise UserError(f"`seeds` {seeds} is the seed of one image, and there are {batch_size}; give a list")
        field, given = "seeds", [seeds]
    else:
        field, given = "seeds", as_list("seeds", seeds)
    if given is None or isinstance(given, torch.Generator):
        return given
    if not isinstance(given, Sequence | np.ndarray | Tensor) or isinstance(given, str):
        return _generator(given, field)
    if len(given) != batch_size:
        raise UserError(
            f"You have passed a list of {field.rstrip('s')}s of length {len(given)}, but requested an effective batch "
            f"size of {batch_size}. Make sure the batch size matches the length of the {field.rstrip('s')}s."
        )
    return [_generator(one, field) for one in given]


def _generator(value: Any, field: str) -> torch.Generator:
    if isinstance(value, torch.Generator):
        return value
    if not is_whole(value):
        raise UserError(f"`{field}` is a {type(value).__name__}; give a torch.Generator, or a seed as 5")
    if not -(2**63) <= (seed := int(value)) < 2**64:
        raise UserError(f"`{field}` {seed} must be between -2^63 and 2^64 - 1")
    return torch.Generator().manual_seed(seed)


def _randint(high: int, count: int, generator: torch.Generator | None) -> Int[Tensor, " count"]:
    return torch.randint(high, (count,), generator=generator, device=None if generator is None else generator.device)
