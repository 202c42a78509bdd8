"""OpenAI's checkpoints of consistency models and of their EDM teachers: a state dict in a PyTorch file.

What training scripts wrap such a state dict in is taken off (see `unistep.formats.wrappers`), and safetensors files of
the same tensors are read as well.

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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unistep.errors import UserError
from unistep.formats.empty import without_weights
from unistep.formats.location import Location
from unistep.formats.model import Kind, LoadedModel, ModelInfo, precondition
from unistep.formats.network_places import find_places
from unistep.formats.openai.layout import MARKS, openai_config, openai_to_diffusers, usual_sample_size
from unistep.formats.tensor_file import checked_tensors, main_dtype, map_state, names_in_safetensors, not_finite
from unistep.formats.wrappers import Wrapped, unwrap
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

# Networks of other layouts, by tensors that they have.
_OTHERS = {
    "diffusers' UNet2DModel": frozenset(("conv_in.weight", "time_embedding.linear_1.weight", "conv_out.weight")),
    "EDM's SongUNet": frozenset(("map_layer0.weight", "map_layer1.weight")),
}


def is_openai(location: Location) -> bool:
    """Returns whether a file is one of `torch.save`, or safetensors with the tensors of this U-Net."""
    if location.is_torch_file:
        return True
    # Other safetensors belong to model folders.
    return location.is_safetensors and any(name.endswith(MARKS[0]) for name in names_in_safetensors(location.path))


def load_openai(
    path: Path | str,
    device: torch.device | str = "cpu",
    *,
    kind: Kind | None = None,
    attention_head_dim: int | None = None,
    num_heads: int | None = None,
    sample_size: int | None = None,
    weights: str | None = None,
) -> LoadedModel:
    """Opens a checkpoint of OpenAI's.

    Args:
        path: .pt or .safetensors file; nothing in it is executed.
        device: device of the model; "meta" opens it without the values of its weights.
        kind: "consistency" or "diffusion"; None is that of the file's name, or "consistency" without one.
        attention_head_dim: channels of an attention head; None is 64, as in all published models.
        num_heads: number of attention heads at every resolution, in place of `attention_head_dim`.
        sample_size: side of the images in pixels; None is the size at which attention begins at 32 pixels.
        weights: network to choose if the file holds several; see `unistep.formats.wrappers.unwrap`.

    Raises:
        UserError: no such file, not a checkpoint, not of this U-Net, or weights that are not finite; names the file
            and the tensor.
    """
    path = Path(path)
    if num_heads is not None and attention_head_dim is not None:
        raise UserError(
            f"`num_heads` {num_heads} and `attention_head_dim` {attention_head_dim} exclude each other; leave out one"
        )
    wrapped = _read(path, weights)
    assumed = attention_head_dim is None and num_heads is None
    try:
        head_dim = 64 if assumed else attention_head_dim
        config, state = _converted(path, wrapped.tensors, head_dim, num_heads, sample_size)
    except UserError as error:
        hint = ", or give `num_heads`" if assumed and "attention_head_dim: 64" in str(error) else ""
        raise UserError(f"{error}{hint}") from None
    if config.in_channels != config.out_channels:
        raise UserError(
            f"{path}: makes {config.out_channels} channels of {config.in_channels}: not a consistency model or an EDM "
            "denoiser, but one that learns its variance"
        )
    config, notes = with_usual_size(config)
    if wrapped.note:
        notes.insert(0, wrapped.note)
    if assumed and not _NAME.match(path.name):
        notes.append(
            "attention heads of 64 channels are assumed, as in all published models; no tensor tells their size; else "
            "give `attention_head_dim`, or `num_heads` of a model with one number of heads everywhere"
        )
    info, said = info_of_name(path.name, kind)
    notes += said
    with without_weights():
        network = UNet(config)
    if torch.device(device).type != "meta":
        values = {name: tensor.float() for name, tensor in state.items()}
        if (bad := not_finite(values)) is not None:
            raise UserError(f"{path}: tensor {bad} has values that are not finite; training failed, or fetch it again")
        network.load_state_dict(values, assign=True)
    denoiser = precondition(network, info).to(device).eval().requires_grad_(False)
    return LoadedModel(denoiser, info, config, path, "OpenAI .pt", main_dtype(state.values()), tuple(notes))


def read_openai(
    path: Path | str,
    attention_head_dim: int | None = 64,
    *,
    num_heads: int | None = None,
    sample_size: int | None = None,
    weights: str | None = None,
) -> tuple[UNetConfig, dict[str, Tensor]]:
    """The architecture and the weights in a checkpoint of OpenAI's.

    Args:
        path: .pt or .safetensors file; nothing in it is executed.
        attention_head_dim: channels of an attention head, 64 in all published models.
        num_heads: number of attention heads at every resolution, where `attention_head_dim` is None.
        sample_size: side of the images in pixels, for the config.
        weights: network to choose if the file holds several.

    Returns:
        The config, and the state dict for `UNet(config)` in the dtype of the file.

    Raises:
        UserError: no such file, not a checkpoint, or not of this U-Net; names the file and the tensor.
    """
    return _converted(Path(path), _read(Path(path), weights).tensors, attention_head_dim, num_heads, sample_size)


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


def _read(path: Path, weights: str | None) -> Wrapped:
    """The tensors of the network in a file, without what they are wrapped in."""
    content = map_state(path, "give the .pt file of a model")
    found = unwrap(content, [MARKS], path, weights, numbers=True)
    if found is None and weights is not None:
        raise UserError(f"`weights` {weights}: {path} holds no network of OpenAI's layout under a name; leave it out")
    if found is None:
        _refuse_other_layouts(path, content)
        found = Wrapped(content)
    return replace(found, tensors=checked_tensors(found.tensors, path, "give the state dict of a network alone"))


def _refuse_other_layouts(path: Path, content: dict[str, Any]) -> None:
    """Names a network of another layout, which needs the files beside it."""
    other = next((name for name, marks in _OTHERS.items() if find_places(content, [marks], True)[0]), None)
    if other is not None and re.fullmatch(r"step-\d{8}\.pt", path.name):
        raise UserError(f"{path} is a checkpoint of a training; give the folder of its stage: {path.parent.parent}")
    if other is not None:
        raise UserError(
            f"{path} holds the tensors of {other} without its architecture; put them into a model folder as "
            "unet/diffusion_pytorch_model.bin, beside their config.json"
        )


def _converted(
    path: Path, tensors: dict[str, Tensor], head_dim: int | None, num_heads: int | None, sample_size: int | None
) -> tuple[UNetConfig, dict[str, Tensor]]:
    try:
        config = openai_config(tensors, head_dim, num_heads=num_heads, sample_size=sample_size)
        return config, openai_to_diffusers(tensors, config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
