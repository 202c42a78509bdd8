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

import contextlib
import dataclasses
import os
import re
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unistep.errors import UserError
from unistep.formats.empty import without_weights
from unistep.formats.location import Location
from unistep.formats.model import Kind, LoadedModel, ModelInfo, precondition
from unistep.formats.openai.layout import diffusers_to_openai, openai_config, openai_to_diffusers, usual_sample_size
from unistep.formats.tensor_file import checked_tensors, main_dtype, map_state, not_finite
from unistep.networks.adm import UNet, UNetConfig
from unistep.networks.patched import PatchedUNet

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
    config, notes = _with_size(config)
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


def save_openai(path: Path | str, model: LoadedModel, *, dtype: torch.dtype | None = None) -> None:
    """Writes a model as OpenAI's code reads it; a file of that name is replaced only when the new one is complete.

    Args:
        path: .pt file.
        model: model of an ADM U-Net.
        dtype: dtype of the weights; None is that of the file that the model was read from.

    Raises:
        UserError: OpenAI's code has no counterpart of the model; `path` is not to be written.
    """
    path = Path(path)
    network = model.denoiser.network
    if isinstance(network, PatchedUNet) and network.config.patch_size == 1:
        network = network.unet
    if not isinstance(network, UNet):
        raise UserError(
            f"{path}: OpenAI's files hold ADM U-Nets alone, and this model is a {type(network).__name__}; "
            "convert it to a model folder: give a target without an ending"
        )
    _check_info(path, model)
    try:
        state = diffusers_to_openai(network.state_dict(), network.config)
    except UserError as error:
        raise UserError(f"{path}: {error}; convert it to a model folder: give a target without an ending") from None
    dtype = dtype or model.dtype
    # Copied, so that no tensor brings along a larger storage that it is a part of.
    state = {name: v.detach().to("cpu", dtype, copy=True).contiguous() for name, v in state.items()}
    if (bad := not_finite(state)) is not None:
        word = str(dtype).removeprefix("torch.")
        raise UserError(f"{path}: tensor {bad} has values that are not finite as {word}; it was not written")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, temporary)
        os.replace(temporary, path)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"cannot write {path}: {path.parent} is no folder and cannot be made one") from None
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where the disk is full
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_openai(path: Path, model: LoadedModel, *, dtype: torch.dtype, origin: str) -> tuple[str, ...]:
    """Writes a model as OpenAI's code reads it.

    Args:
        path: .pt file; it is replaced when the new one is complete.
        model: model of an ADM U-Net.
        dtype: dtype of the weights.
        origin: not kept: the file holds weights alone.

    Returns:
        Notes on facts that the file does not hold, a line each.

    Raises:
        UserError: OpenAI's code has no counterpart of the model; `path` is not to be written.
    """
    save_openai(path, model, dtype=dtype)
    arguments, lost = dropped_by_openai(path.name, model)
    notes = []
    if arguments:
        notes.append(f"open {path.name} with {', '.join(f'`{a}`' for a in arguments)}: the file does not tell it")
    if lost:
        notes.append(f"{path.name} does not keep {', '.join(lost)}")
    return tuple(notes)


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


def dropped_by_openai(name: str, model: LoadedModel) -> tuple[list[str], list[str]]:
    """The facts about a model that its state dict does not hold.

    Args:
        name: name of the file that `save_openai` writes.
        model: model that is written.

    Returns:
        The arguments of `load_openai` that open the file as the same model, as 'kind="diffusion"'; and the facts that
        are lost in any case, as "sigma_max 40".
    """
    info, config = model.info, model.config
    assert isinstance(config, UNetConfig)  # `save_openai` refuses others
    arguments = [] if info_of_name(name)[0].kind == info.kind else [f'kind="{info.kind}"']
    reopened, _ = info_of_name(name, info.kind)
    fields = ["sigma_min", "sigma_max", "rho", "null_label"]
    if info.kind == "consistency":
        fields += ["num_train_timesteps", "timesteps"]
    ours = {field: getattr(info, field) for field in fields}
    lost = [
        f"{field} {','.join(map(str, value))}" if isinstance(value, tuple) else f"{field} {value:g}"
        for field, value in ours.items()
        if value is not None and value != getattr(reopened, field)
    ]
    lost += [f"timesteps {','.join(map(str, own))}" for own in info.schedules]
    if config.attention_head_dim != 64:
        # Without a number there is one head, whose channels are the width.
        widths = {w for w, k in zip(config.block_out_channels, config.down_block_types, strict=True) if k[:4] == "Attn"}
        widths.add(config.block_out_channels[-1])
        if config.attention_head_dim is None and len(widths) > 1:
            lost.append("attention_head_dim null")
        else:
            arguments.append(f"attention_head_dim={config.attention_head_dim or widths.pop()}")
    guessed, _ = _with_size(dataclasses.replace(config, sample_size=None))
    if model.image_shape[1] != guessed.sample_size:
        arguments.append(f"sample_size={model.image_shape[1]}")
    return arguments, lost


def _with_size(config: UNetConfig) -> tuple[UNetConfig, list[str]]:
    """The config with a size of the images, and a note on it if it was not given."""
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


def _check_info(path: Path, model: LoadedModel) -> None:
    """Refuses scalings other than those of OpenAI's code, which takes its noise range from the command line."""
    info, ours = model.info, ModelInfo()
    scalings = [("noise_embedding", info.noise_embedding), ("sigma_data", info.sigma_data)]
    if info.kind == "diffusion":
        scalings.append(("preconditioning", info.preconditioning))
    for name, value in scalings:
        if value != getattr(ours, name):
            raise UserError(
                f"{path}: OpenAI's code has {name} {getattr(ours, name)} alone, and this model has {value}; "
                "convert it to a model folder: give a target without an ending"
            )


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
