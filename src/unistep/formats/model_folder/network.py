"""unet/config.json of a model folder: the class of the network, and its architecture.

`UNet2DModel` is diffusers' class, whose fields our `UNetConfig` shares; a field that a file leaves out has diffusers'
default, and one that our network has in a single form must have that value. The other classes are this package's own
and diffusers cannot open them.
"""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from unistep.errors import UserError
from unistep.files import LAYOUT
from unistep.formats.empty import without_weights
from unistep.formats.json_config import read_object, refuse_other, refuse_unknown, shown, typed_fields
from unistep.networks.outline import fields_of
from unistep.networks.table import NETWORKS, Network, row_of

# Every folder names the release that wrote it; no reader goes by it.
DIFFUSERS_VERSION = "0.20.0"

# Fields of `UNet2DModel` that change what the network computes and that ours has in one form only.
_FIXED = {
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
}
# Its defaults where ours differ.
_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "resnet_time_scale_shift": "default",
}
# Fields that do not change what the network computes: of learned time embeddings, of diffusers' weight averages.
_IDLE = {
    "num_train_timesteps",
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
}

# No network comes near these. Beyond them a file is damaged, or meant to exhaust the machine that opens it.
_MOST = 1_000_000
_MOST_OF = {"sample_size": 8192, "layers_per_block": 32, "num_blocks": 32, "patch_size": 64}
_LONGEST = 16


def network_row(network: nn.Module) -> Network:
    """The row of a network that a model folder can hold.

    Raises:
        UserError: the network has no row.
    """
    row = row_of(network)
    if row is None:
        raise UserError(f"a {type(network).__name__} cannot be saved in a model folder; {_known()} can")
    return row


def config_object(network: nn.Module) -> dict[str, Any]:
    """The content of config.json for a network."""
    config: Any = network.config
    return {
        "_class_name": network_row(network).class_name,
        "_diffusers_version": DIFFUSERS_VERSION,
        **fields_of(config),
    }


def read_network(path: Path) -> nn.Module:
    """The network that a config.json describes, without weights, on the meta device.

    Raises:
        UserError: no such file, not JSON, an unknown network, or an architecture that is not one.
    """
    return network_of(read_object(path, LAYOUT), path)


def network_of(raw: dict[str, Any], path: Path) -> nn.Module:
    """The network that the content of a config.json describes, without weights, on the meta device.

    Args:
        raw: content of the file.
        path: name of the file, for messages.

    Raises:
        UserError: an unknown network, or an architecture that is not one.
    """
    if "sample_size" in raw:
        raw = raw | {"sample_size": _side(raw["sample_size"], path)}
    name = raw.get("_class_name")
    row = next((row for row in NETWORKS.values() if row.class_name == name), None)
    if row is None:
        raise UserError(f"{path}: unknown network {shown(name)}; known are {_known()}")
    config_type = row.config_class_of(raw)
    known = {field.name for field in dataclasses.fields(config_type)}
    if row.of_diffusers:
        refuse_other(raw, _FIXED, path)
        refuse_unknown(raw, known | _FIXED.keys() | _IDLE, path)
    else:
        refuse_unknown(raw, known, path)
    values = typed_fields(config_type, raw, path)
    _check_sizes(values, path)
    try:
        config = config_type(**((_DEFAULTS if row.of_diffusers else {}) | values))
        with without_weights():
            return row.build(config)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _side(size: Any, path: Path) -> Any:
    """The side of the image: of height and width, as diffusers writes them where both were given, if they are equal."""
    if not isinstance(size, list | tuple) or len(size) != 2 or any(type(side) is not int for side in size):
        return size
    if size[0] != size[1]:
        raise UserError(f"{path}: sample_size {shown(size)} is not square; only square images are supported")
    return size[0]


def _check_sizes(values: dict[str, Any], path: Path) -> None:
    for name, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if len(numbers) > _LONGEST:
            raise UserError(f"{path}: {name} has {len(numbers)} entries; at most {_LONGEST} are supported")
        most = _MOST_OF.get(name, _MOST)
        for number in numbers:
            if isinstance(number, int) and number > most:
                raise UserError(f"{path}: {name} is {shown(value)}; at most {most} is supported")


def _known() -> str:
    return ", ".join(row.class_name for row in NETWORKS.values())
