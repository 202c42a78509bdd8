"""Quantized models: a model folder whose network is a program of OpenVINO's in int8, with what that costs beside it.

model_index.json, unet/config.json, scheduler/scheduler_config.json    as of a model folder, without the weights
int8/about.json           quality, noise levels, sizes of the files
int8/ends.safetensors     embedding and output head, fp32
int8/trunk.xml, trunk.bin the program
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from unistep.core.parameterization import Preconditioned
from unistep.errors import UserError
from unistep.formats.location import Location
from unistep.formats.model import LoadedModel
from unistep.formats.model_folder.files import QUANTIZED
from unistep.formats.model_folder.folder import load_outline
from unistep.prepared.network import PreparedNetwork
from unistep.prepared.store import ABOUT, ENDS, read_entry
from unistep.prepared.table import RUNTIMES
from unistep.runtime.heap import keep_for_bytes

FOLDER = QUANTIZED
_AGAIN = "quantize the model again"


def is_quantized(location: Location) -> bool:
    """Returns whether there is a quantized model."""
    return location.is_folder and (location.path / FOLDER / ABOUT).is_file()


def load_quantized(path: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Opens a quantized model.

    Args:
        path: folder of the model.
        device: cpu, or "meta", which leaves the network out.

    Raises:
        UserError: a file is missing or damaged, OpenVINO is not installed, or the device is no CPU.
    """
    outline = replace(load_outline(path, {}, "meta"), format="quantized model", dtype=torch.int8)
    if torch.device(device).type == "meta":
        return outline
    if torch.device(device).type != "cpu":
        raise UserError(f"{path} is quantized for the CPU, and `device` is {device}", "take the model it was made of")
    row = RUNTIMES["openvino"]
    row.check_installed()
    entry = read_entry(path, FOLDER)
    tile = entry.about.get("tile") if entry else None
    key = entry.about.get("key") if entry else None
    if entry is None or not isinstance(tile, int) or not 1 <= tile <= 1024 or not _is_key(key):
        raise UserError(f"{path / FOLDER} is not whole, or damaged", _AGAIN)
    keep_for_bytes(entry.num_bytes)
    try:
        ends = load_file(entry.folder / ENDS)
        trunk = row.opener()(entry.folder, "int8", tile)
        network = PreparedNetwork(outline.denoiser.network, ends, trunk, str(key), row.name, "int8")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path / FOLDER} cannot be read ({str(error).partition(chr(10))[0][:200]})", _AGAIN) from None
    denoiser = Preconditioned(network, outline.denoiser.scaling).eval().requires_grad_(False)
    return replace(outline, denoiser=denoiser)


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and len(key) == 40 and all(c in "0123456789abcdef" for c in key)
