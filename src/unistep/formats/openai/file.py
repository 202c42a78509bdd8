"""OpenAI's checkpoints of consistency models and of their EDM teachers: a PyTorch file that holds a state dict alone.

    edm_imagenet64_ema.pt     cd_imagenet64_l2.pt     cd_imagenet64_lpips.pt     ct_imagenet64.pt
    edm_bedroom256_ema.pt     cd_bedroom256_l2.pt     cd_bedroom256_lpips.pt     ct_bedroom256.pt
    edm_cat256_ema.pt         cd_cat256_l2.pt         cd_cat256_lpips.pt         ct_cat256.pt

(openai/consistency_models, README.md). The architecture is read off the tensors, see `unistep.formats.openai.layout`.
All else is taken from the file's name, if it has this form, and from the published commands (`scripts/launch.sh`);
`LoadedModel.notes` lists it:

    edm_   a diffusion model
    cd_    consistency distillation on 40 noise levels
    ct_    consistency training, which ended on 201 levels for ImageNet-64 and on 151 for LSUN-256
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unistep.errors import UserError
from unistep.formats.empty import without_weights
from unistep.formats.location import Location
from unistep.formats.model import Kind, LoadedModel, ModelInfo, precondition
from unistep.formats.openai.layout import openai_config, openai_to_diffusers, usual_sample_size
from unistep.formats.tensor_file import checked_tensors, main_dtype, map_state, not_finite
from unistep.networks.adm import UNet, UNetConfig

_NAME = re.compile(r"(?P<method>edm|cd|ct)_(?P<data>imagenet64|bedroom256|cat256)(?:_(?P<distance>l2|lpips))?")
_METHODS = {"edm": "EDM denoising", "cd": "consistency distillation", "ct": "consistency training"}
_CT_LEVELS = {"imagenet64": 201, "bedroom256": 151, "cat256": 151}
# `--ts 0,22,39` of the published commands is the indices 0 and 22; those of CD are of LSUN-256 as a whole.
_TWO_STEPS = {
    "cd_imagenet64_l2": (0, 22),
    "cd_imagenet64_lpips": (0, 22),
    "cd_bedroom256_l2": (0, 18),
    "cd_bedroom256_lpips": (0, 17),
    "cd_cat256_l2": (0, 18),
    "cd_cat256_lpips": (0, 17),
    "ct_imagenet64": (0, 106),
    "ct_bedroom256": (0, 67),
    "ct_cat256": (0, 62),
}


def is_openai(location: Location) -> bool:
    """Returns whether a file is one of `torch.save`."""
    return location.is_torch_file


def load_openai(
    path: Path | str,
    device: torch.device | str = "cpu",
    *,
    kind: Kind | None = None,
    attention_head_dim: int = 64,
    sample_size: int | None = None,
) -> LoadedModel:
    """Opens a checkpoint of OpenAI's.

    Args:
        path: .pt file; nothing in it is executed.
        device: device of the model; "meta" opens it without the values of its weights.
        kind: "consistency" or "diffusion"; None is that of the file's name, or "consistency" without one.
        attention_head_dim: channels of an attention head, 64 in all published models.
        sample_size: side of the images in pixels; None is the size at which attention begins at 32 pixels.

    Raises:
        UserError: no such file, not a checkpoint, not of this U-Net, or weights that are not finite; names the file
            and the tensor.
    """
    path = Path(path)
    config, state = read_openai(path, attention_head_dim, sample_size=sample_size)
    if config.in_channels != config.out_channels:
        raise UserError(
            f"{path}: makes {config.out_channels} channels of {config.in_channels}: not a consistency model or an EDM "
            "denoiser, but one that learns its variance"
        )
    config, notes = with_usual_size(config)
    info, said = info_of_name(path.name, kind)
    notes += said
    with without_weights():
        network = UNet(config)
    if torch.device(device).type != "meta":
        weights = {name: tensor.float() for name, tensor in state.items()}
        if (bad := not_finite(weights)) is not None:
            raise UserError(f"{path}: tensor {bad} has values that are not finite; training failed, or fetch it again")
        network.load_state_dict(weights, assign=True)
    denoiser = precondition(network, info).to(device).eval().requires_grad_(False)
    return LoadedModel(denoiser, info, config, path, "OpenAI .pt", main_dtype(state.values()), tuple(notes))


def read_openai(
    path: Path | str, attention_head_dim: int = 64, *, sample_size: int | None = None
) -> tuple[UNetConfig, dict[str, Tensor]]:
    """The architecture and the weights in a checkpoint of OpenAI's.

    Args:
        path: .pt file; nothing in it is executed.
        attention_head_dim: channels of an attention head, 64 in all published models.
        sample_size: side of the images in pixels, for the config.

    Returns:
        The config, and the state dict for `UNet(config)` in the dtype of the file.

    Raises:
        UserError: no such file, not a checkpoint, or not of this U-Net; names the file and the tensor.
    """
    state = _load(Path(path))
    try:
        config = openai_config(state, attention_head_dim, sample_size=sample_size)
        return config, openai_to_diffusers(state, config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def info_of_name(name: str, kind: Kind | None = None) -> tuple[ModelInfo, list[str]]:
    """The facts about a model by the name of its file.

    Args:
        name: name of the file, without the folder.
        kind: kind by the user; a name of the other kind is then ignored.

    Returns:
        The facts, and notes on those taken from the name, a line each.
    """
    if match := _NAME.match(name):
        method = match["method"]
        named: Kind = "diffusion" if method == "edm" else "consistency"
        if kind in (None, named):
            distance = {"l2": ", l2", "lpips": ", LPIPS"}.get(match["distance"] or "", "")
            words = _METHODS[method] + distance
            if named == "diffusion":
                note = f"by its name the file is of {words}"
                return ModelInfo(kind="diffusion", method=words), [note]
            levels = 40 if method == "cd" else _CT_LEVELS[match["data"]]
            note = f"by its name the file is of {words}, {levels} noise levels"
            info = ModelInfo(num_train_timesteps=levels, timesteps=_TWO_STEPS.get(match[0]), method=words)
            return info, [note]
    if kind is None:
        note = "neither tensors nor name determine the kind; it is taken for a consistency model; else give `kind`"
        return ModelInfo(), [note]
    return ModelInfo(kind=kind), []


def with_usual_size(config: UNetConfig) -> tuple[UNetConfig, list[str]]:
    """Completes a config by a size of the images.

    Args:
        config: architecture of the network; its `sample_size` may be None.

    Returns:
        The config with a size, and a note that names a size that was not given.
    """
    if config.sample_size is not None:
        return config, []
    size = usual_sample_size(config)
    if size is None:
        size = max(64, 2 ** (len(config.block_out_channels) - 1))
        note = f"nothing determines the size of the images; {size} pixels are taken; else give `sample_size`"
    else:
        note = (
            f"images of {size} pixels, where attention begins at 32 as in all published models; else give `sample_size`"
        )
    return dataclasses.replace(config, sample_size=size), [note]


def _load(path: Path) -> dict[str, Tensor]:
    state = _unwrapped(map_state(path, "give the .pt file of a model"), path)
    return checked_tensors(state, path, "give the state dict of a network alone")


def _unwrapped(state: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """The state dict itself, which a training script may have put beside other things, under any name."""
    inner = {name: v for name, v in state.items() if isinstance(v, dict) and "input_blocks.0.0.weight" in v}
    if len(inner) > 1:
        names = ", ".join(map(str, inner))
        raise UserError(f"{path} holds several networks ({names}); save the one to use in a file of its own")
    return next(iter(inner.values())) if inner else state
