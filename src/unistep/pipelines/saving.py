"""Pipelines and networks written as diffusers writes them."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from unistep.checks import user_path
from unistep.errors import UserError
from unistep.files import whole_file
from unistep.pipelines.numbers import is_whole
from unistep.pipelines.runtimes import check_has_weights

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def check_saving(unet: nn.Module, safe_serialization: bool, variant: str | None, max_shard_size: Any) -> None:
    """Checks the options of a network's file.

    Args:
        unet: the network.
        safe_serialization: must be true.
        variant: word for the file's name; None for the plain name.
        max_shard_size: largest size of a file, in bytes or as "5GB"; None is any.

    Raises:
        UserError: an option that cannot be honoured, or a network whose weights are in another runtime.
    """
    check_has_weights(unet)
    if not safe_serialization:
        raise UserError("`safe_serialization=False`: weights are written as safetensors alone, never as pickles")
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_]+", variant):
        raise UserError(f"{variant!r} is not a word of letters and digits, as fp16", field="variant")
    if max_shard_size is None:
        return
    size = sum(p.numel() * p.element_size() for p in unet.parameters())
    if size > _bytes(max_shard_size):
        raise UserError(
            f"`max_shard_size` {max_shard_size}: the weights, {size / 1e6:,.0f} MB, are one file; leave it out"
        )


def save_network(network: nn.Module, folder: str | os.PathLike[str], dtype: torch.dtype, variant: str | None) -> None:
    """Writes config.json and the weights of a network.

    Args:
        network: network of a row of `NETWORKS`.
        folder: folder of both, which is made if there is none.
        dtype: dtype of the weights in the file.
        variant: word for the weights' file name; None for the plain name.

    Raises:
        UserError: the folder cannot be written, or a weight is not finite.
    """
    from unistep.formats.json_config import write_object
    from unistep.formats.model_folder.network import config_object
    from unistep.formats.model_folder.weights import save_weights

    path = user_path(folder)
    word = f".{variant}" if variant else ""
    try:
        with whole_file(path / f"diffusion_pytorch_model{word}.safetensors") as temporary:
            save_weights(network, temporary, dtype)
        with whole_file(path / "config.json") as temporary:
            write_object(temporary, config_object(network))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def push_name(repo_id: object, folder: Path) -> str:
    """Returns the name on the hub that a saved pipeline is pushed to.

    Args:
        repo_id: owner/name as the caller gives it; None if it is not given.
        folder: the saved folder.

    Raises:
        UserError: it is not given.
    """
    if not isinstance(repo_id, str) or not repo_id:
        raise UserError(f"`push_to_hub=True` needs `repo_id`, owner/name on the hub, as you/{folder.name or 'model'}")
    return repo_id


def _bytes(size: Any) -> int:
    if is_whole(size) and int(size) > 0:
        return int(size)
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?I?B|)", str(size).upper())
    if isinstance(size, str) and found and found[2] in _UNITS:
        return int(float(found[1]) * _UNITS[found[2]])
    raise UserError(f"`max_shard_size` {size!r} is no size; give bytes, or a number with a unit, as 5GB")
