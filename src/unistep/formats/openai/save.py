"""Models written as checkpoints that OpenAI's code reads."""

import contextlib
import dataclasses
import os
import uuid
from pathlib import Path

import torch

from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo
from unistep.formats.openai.file import info_of_name, with_usual_size
from unistep.formats.openai.layout import diffusers_to_openai
from unistep.formats.tensor_file import not_finite
from unistep.networks.adm import UNet, UNetConfig
from unistep.networks.patched import PatchedUNet


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
    lost += [] if info.clip else ["no clamp in the sampler, which is `clip=False`"]
    lost += [f"timesteps {','.join(map(str, own))}" for own in info.schedules]
    lost += ["the names of the classes"] if info.class_names else []
    if config.num_heads is not None:
        arguments.append(f"num_heads={config.num_heads}")
    elif config.attention_head_dim != 64:
        # Without a number there is one head, whose channels are the width.
        widths = {w for w, k in zip(config.block_out_channels, config.down_block_types, strict=True) if k[:4] == "Attn"}
        widths.add(config.block_out_channels[-1])
        if config.attention_head_dim is None and len(widths) > 1:
            lost.append("attention_head_dim null")
        else:
            arguments.append(f"attention_head_dim={config.attention_head_dim or widths.pop()}")
    guessed, _ = with_usual_size(dataclasses.replace(config, sample_size=None))
    if model.image_shape[1] != guessed.sample_size:
        arguments.append(f"sample_size={model.image_shape[1]}")
    return arguments, lost


def _check_info(path: Path, model: LoadedModel) -> None:
    """Refuses scalings other than those of OpenAI's code, which takes its noise range from the command line."""
    info, ours = model.info, ModelInfo()
    if info.flow_map or info.guidance_scale is not None:
        raise UserError(
            f"{path}: OpenAI's networks have no input for the end of a trajectory, or for guidance, as this model has; "
            "convert it to a model folder: give a target without an ending"
        )
    scalings = [("noise_embedding", info.noise_embedding), ("sigma_data", info.sigma_data)]
    if info.kind == "diffusion":
        scalings.append(("preconditioning", info.preconditioning))
    for name, value in scalings:
        if value != getattr(ours, name):
            raise UserError(
                f"{path}: OpenAI's code has {name} {getattr(ours, name)} alone, and this model has {value}; "
                "convert it to a model folder: give a target without an ending"
            )
