"""Model folders in diffusers' layout, written and read.

    model_index.json                              which classes; `ConsistencyModelPipeline` for consistency models
    unet/config.json                              the architecture, see `network`
    unet/diffusion_pytorch_model.safetensors      the weights, see `weights`
    scheduler/scheduler_config.json               the noise range and grid, see `schedule`
    README.md                                     the model card

A folder whose backbone is the plain U-Net opens in diffusers, and the published `openai/diffusers-*` folders open
here. A diffusion model (a teacher) has the same layout with diffusers' `EDMEulerScheduler`.
"""

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from unistep.errors import UserError
from unistep.files import LAYOUT
from unistep.formats.json_config import read_object, write_object
from unistep.formats.model import LoadedModel, ModelInfo, check_class_names, precondition
from unistep.formats.model_folder.card import PICTURE, plain_card
from unistep.formats.model_folder.files import CARD, INDEX, check_components
from unistep.formats.model_folder.network import (
    DIFFUSERS_VERSION,
    config_object,
    network_row,
    read_network,
)
from unistep.formats.model_folder.schedule import read_info, schedule_object, scheduler_class
from unistep.formats.model_folder.weights import dtype_of_weights, find_weights, load_weights, save_weights
from unistep.networks.outline import FURTHER_INPUTS


def save_model(
    path: Path,
    network: nn.Module,
    info: ModelInfo,
    *,
    card: str,
    picture: Path | None = None,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
) -> None:
    """Writes a model folder; an older folder of that name is replaced only when the new one is complete.

    Args:
        path: folder, or a link to it.
        network: network of a row of `NETWORKS`.
        info: noise range, grid and kind.
        card: content of README.md.
        picture: PNG of samples that goes into the folder; None for none.
        dtype: dtype of the weights in the file.
        variant: word for the weights' file name, as "fp16", which opening the folder then needs; None for the plain
            name.

    Raises:
        UserError: `path` is a file, or a folder that is not a model's, or cannot be written; a weight is not finite.
    """
    target = path.resolve()
    if target.exists() and not (target.is_dir() and ((target / INDEX).exists() or not any(target.iterdir()))):
        raise UserError(f"{path} exists and is not a model folder; choose another path")
    if variant is not None and not (variant.isascii() and variant.replace("_", "").isalnum()):
        raise UserError(f"{variant!r} is not a word of letters and digits, as fp16", field="variant")
    temporary, old = (target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.{word}") for word in ("tmp", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_folder(temporary, network, info, card, dtype, variant, picture)
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
    except (FileExistsError, NotADirectoryError):
        above = next(folder for folder in target.parents if os.path.lexists(folder))
        raise UserError(f"cannot write {path}: {above} is no folder and cannot be made one") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def write_model_folder(path: Path, model: LoadedModel, *, dtype: torch.dtype, origin: str) -> tuple[str, ...]:
    """Writes a model as a model folder.

    Args:
        path: folder; an older model folder is replaced when the new one is complete.
        model: model with a network of a row of `NETWORKS`.
        dtype: dtype of the weights in the file.
        origin: origin of the model, in words, for the card.

    Returns:
        No notes: a folder keeps all of a model.

    Raises:
        UserError: as `save_model`.
    """
    card = plain_card(path.resolve().name, model.info, origin, model.config)
    save_model(path, model.denoiser.network, model.info, card=card, dtype=dtype)
    return ()


def load_model(
    path: Path, device: torch.device | str = "cpu", *, variant: str | None = None, weights: str | None = None
) -> LoadedModel:
    """Opens a model folder.

    Args:
        path: folder that holds model_index.json.
        device: device of the model; "meta" checks all but the values of the weights.
        variant: variant of the weights, as "fp16" for diffusion_pytorch_model.fp16.safetensors; None is the plain ones.
        weights: network to choose if the files of the weights hold several; see `unistep.formats.wrappers.unwrap`.

    Raises:
        UserError: a file is missing, damaged or of an unknown kind.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give a model folder, the one that holds {INDEX}")
    network, info = _read_outline(path)
    files = find_weights(path, variant)
    load = dtype_of_weights if torch.device(device).type == "meta" else load_weights
    dtype, notes = load(network, files, weights)
    denoiser = precondition(network, info).to(device).eval().requires_grad_(False)
    config: Any = network.config
    return LoadedModel(denoiser, info, config, path, dtype=dtype, notes=notes)


def load_outline(path: Path, weights: Mapping[str, torch.Tensor], device: torch.device | str = "cpu") -> LoadedModel:
    """Opens the outline of a model folder with weights of another file.

    Args:
        path: folder that `write_outline` wrote.
        weights: weights by name, fp32.
        device: device of the model; "meta" leaves the weights out.

    Raises:
        UserError: a file is missing or damaged, or the weights are of another network.
    """
    network, info = _read_outline(path)
    config: Any = network.config
    if torch.device(device).type != "meta":
        try:
            network.load_state_dict(weights, assign=True)
        except RuntimeError:
            raise UserError(f"{path} is of another network than the weights beside it; train the stage anew") from None
    denoiser = precondition(network, info).to(device).eval().requires_grad_(False)
    return LoadedModel(denoiser, info, config, path)


def _read_outline(path: Path) -> tuple[nn.Module, ModelInfo]:
    """The network, without weights, and the noise range of a model folder."""
    read_object(path / INDEX, LAYOUT)
    check_components(path / INDEX, path)
    network = read_network(path / "unet" / "config.json")
    of_diffusers = network_row(network).of_diffusers
    info = read_info(path / "scheduler" / "scheduler_config.json", diffusers_network=of_diffusers)
    _check_fit(network.config, info, path)
    return network, info


def _write_folder(
    folder: Path,
    network: nn.Module,
    info: ModelInfo,
    card: str,
    dtype: torch.dtype,
    variant: str | None,
    picture: Path | None,
) -> None:
    write_outline(folder, network, info)
    dotted = f".{variant}" if variant else ""
    save_weights(network, folder / "unet" / f"diffusion_pytorch_model{dotted}.safetensors", dtype)
    if picture is not None:
        shutil.copyfile(picture, folder / PICTURE)
    (folder / CARD).write_text(card, encoding="utf-8")


def write_outline(folder: Path, network: nn.Module, info: ModelInfo) -> None:
    """Writes a model folder without weights and card, to be opened with weights of other files.

    Args:
        folder: folder; files of an older outline are replaced.
        network: network of a row of `NETWORKS`.
        info: noise range, grid and kind.
    """
    row = network_row(network)
    # diffusers opens what it would compute as we do; its consistency pipeline tells networks 250 ln(sigma) always.
    opens = (
        row.of_diffusers
        and not any(getattr(network.config, name) for name in ("num_heads", *FURTHER_INPUTS))
        and (info.kind == "diffusion" or info.noise_embedding == "adm")
    )
    index = {
        "_class_name": "ConsistencyModelPipeline" if info.kind == "consistency" else "DiffusionPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", scheduler_class(info.kind)],
        "unet": ["diffusers" if opens else "unistep", row.class_name],
    }
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_object(folder / INDEX, index)
    write_object(folder / "unet" / "config.json", config_object(network))
    write_object(folder / "scheduler" / "scheduler_config.json", schedule_object(info))


def _check_fit(config: Any, info: ModelInfo, path: Path) -> None:
    """Refuses files that are right each by itself and do not fit each other."""
    if config.out_channels != config.in_channels:
        raise UserError(
            f"{path / 'unet' / 'config.json'}: out_channels {config.out_channels} is not in_channels "
            f"{config.in_channels}: not a denoiser of images, but a network that also predicts something else"
        )
    try:
        check_class_names(config, info)
    except UserError as error:
        raise UserError(f"{path / 'scheduler' / 'scheduler_config.json'}: {error}") from None
    for name, wanted in (("end_embedding", info.flow_map), ("guidance_embedding", info.guidance_scale is not None)):
        if getattr(config, name, False) != wanted:
            raise UserError(
                f"{path / 'unet' / 'config.json'}: {name} {str(getattr(config, name, False)).lower()} does not fit "
                f"{path / 'scheduler' / 'scheduler_config.json'}, whose flow_map is {str(info.flow_map).lower()} and "
                f"guidance_scale {info.guidance_scale or 'null'}"
            )
    if info.null_label is not None and info.null_label != (config.num_class_embeds or 0) - 1:
        raise UserError(
            f"{path / 'scheduler' / 'scheduler_config.json'}: null_label {info.null_label} is not the last of the "
            f"network's {config.num_class_embeds or 0} classes; correct it or remove it"
        )
