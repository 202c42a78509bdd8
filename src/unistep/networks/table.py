"""The networks that a denoiser can be made of: one row each.

A new network is one file, with a frozen dataclass as its config and a `torch.nn.Module` of one argument, the config,
which it keeps as `config`; and one row here. Recipes, model folders and `unistep inspect` then take it:

- the config has the fields of `NetworkConfig`, refuses values out of range by a ValueError, and may have a method
  `outline` as `UNetConfig` has;
- the network is called as network(x, c_noise, class_labels, generator=generator). One with a method `cast_blocks` also
  runs in half precision, and one with a method `blocks` is parted block by block by the engine "fsdp".

Classes are imported when they are used: the names alone need no torch.
"""

import pkgutil
from collections.abc import Mapping
from dataclasses import Field, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from unistep.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@runtime_checkable
class NetworkConfig(Protocol):
    """The fields that the config of every network has."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def sample_size(self) -> int | None:
        """Side of the image in pixels; None is any."""
        ...

    @property
    def in_channels(self) -> int:
        """Channels of the noisy image."""
        ...

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        ...

    @property
    def num_class_embeds(self) -> int | None:
        """Number of classes; None is unconditional."""
        ...


@dataclass(frozen=True)
class Network:
    """A row of `NETWORKS`.

    Args:
        name: name in recipes.
        title: name in the documentation.
        config: `module:class` of the config, a frozen dataclass.
        network: `module:class` of the network.
        class_name: name of the network in a model folder (`_class_name`); by default that of the class.
        noise_embedding: c_noise of a network that is trained from the start: "adm" 250 ln(sigma), "edm" ln(sigma)/4.
        of_diffusers: true if `class_name` is a class of diffusers', which then opens such a folder.
        heads_config: `module:class` of the config with one number of heads everywhere; empty for none.
    """

    name: str
    title: str
    config: str
    network: str
    class_name: str = ""
    noise_embedding: Literal["adm", "edm"] = "edm"
    of_diffusers: bool = False
    heads_config: str = ""

    def __post_init__(self) -> None:
        if not self.class_name:
            object.__setattr__(self, "class_name", self.network.rpartition(":")[2])

    def config_class(self) -> type[Any]:
        """Imports the class of the config."""
        return pkgutil.resolve_name(self.config)

    def config_class_of(self, values: Mapping[str, object]) -> type[Any]:
        """Imports the class of a config with these values."""
        if self.heads_config and values.get("num_heads") is not None:
            return pkgutil.resolve_name(self.heads_config)
        return self.config_class()

    def network_class(self) -> "type[nn.Module]":
        """Imports the class of the network."""
        return pkgutil.resolve_name(self.network)

    def build(self, config: NetworkConfig) -> "nn.Module":
        """The network of a config, with random weights.

        Raises:
            TypeError: the config is of another network.
        """
        if _place(config) not in (self.config, self.heads_config):
            raise TypeError(f"a {type(config).__name__} is no config of the network {self.name}")
        return self.network_class()(config)


_ROWS = (
    Network(
        "adm",
        "the U-Net of ADM",
        "unistep.networks.adm_config:UNetConfig",
        "unistep.networks.adm:UNet",
        class_name="UNet2DModel",
        noise_embedding="adm",
        of_diffusers=True,
        heads_config="unistep.networks.adm_config:HeadsUNetConfig",
    ),
    Network(
        "patched-adm",
        "the U-Net of ADM on patches of pixels folded into channels",
        "unistep.networks.patched_config:PatchedUNetConfig",
        "unistep.networks.patched:PatchedUNet",
        noise_embedding="adm",
    ),
    Network(
        "song",
        "the U-Nets DDPM++ and NCSN++",
        "unistep.networks.song_config:SongUNetConfig",
        "unistep.networks.song:SongUNet",
    ),
)

NETWORKS: Mapping[str, Network] = MappingProxyType({row.name: row for row in _ROWS})
"""The rows by name; the first is the default."""

# A Literal of the names at run time, for help texts and for the check of recipes; to a type checker a string.
if TYPE_CHECKING:
    NetworkName = str
else:
    NetworkName = Literal[*NETWORKS]


def row_of(value: object) -> Network | None:
    """The row of a network or of a config; None if it has none."""
    return next(
        (row for row in NETWORKS.values() if _place(value) in (row.config, row.heads_config, row.network)), None
    )


def build_network(config: NetworkConfig) -> "nn.Module":
    """The network of a config, with random weights.

    Raises:
        UserError: the config is of no network in the table.
    """
    row = row_of(config)
    if row is None:
        raise UserError(f"a {type(config).__name__} is the config of no network; {', '.join(NETWORKS)} are known")
    return row.build(config)


def _place(value: object) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"
