"""Programs by name, of a model in a precision."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from unistep.errors import UserError
from unistep.exporting.programs import Program, denoiser_program, edit_program, sampler_program
from unistep.formats.model import LoadedModel
from unistep.generation.plan import make_plan


def make_program(
    model: LoadedModel,
    name: str,
    *,
    dtype: str = "fp32",
    steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    solver: str | None = None,
    clip: bool | None = None,
    gamma: float | None = None,
    guidance: float | None = None,
) -> Program:
    """Returns a program of a model, in eval mode.

    Args:
        model: model in fp32; it stays as it is.
        name: denoiser, sampler or edit.
        dtype: precision of the weights; int8 is fp32 here, and quantized in its format.
        steps, timesteps, sigmas, solver, clip, gamma, guidance: plan of a sampler, as of `make_plan`; an edit takes
            `steps` alone.

    Raises:
        UserError: an option that the program has no use for; an edit of a diffusion model.
    """
    options: dict[str, Any] = {"steps": steps, "timesteps": timesteps, "sigmas": sigmas, "solver": solver, "clip": clip}
    options |= {"gamma": gamma, "guidance": guidance}
    given = [f"`{option}`" for option, value in options.items() if value is not None]
    if name == "denoiser" and given:
        own = "scale of guidance" if given == ["`guidance`"] else "noise level"
        raise UserError(f"{given[0]} is for a sampler; a denoiser takes its {own} as an input", "leave it out")
    if name == "edit":
        if others := [one for one in given if one != "`steps`"]:
            raise UserError(f"{others[0]} is for a sampler, and this is an edit", "give `steps`, or leave it out")
        if model.info.kind != "consistency":
            raise UserError(f"{model.path} is a diffusion model; edits need a consistency model: distill it")
    denoiser = _in_precision(model.denoiser, dtype)
    if name == "denoiser":
        made: Program = denoiser_program(model, denoiser)
    elif name == "edit":
        made = edit_program(model, steps, denoiser)
    else:
        made = sampler_program(model, make_plan(model.info, **options), denoiser)
    return made.eval()


def _in_precision(denoiser: nn.Module, dtype: str) -> nn.Module:
    """The denoiser in fp32, or a copy whose blocks are in fp16."""
    if dtype != "fp16":
        return denoiser
    halved = copy.deepcopy(denoiser)
    network = halved.network
    assert isinstance(network, nn.Module)
    network.cast_blocks(torch.float16)  # pyright: ignore[reportCallIssue]
    return halved
