"""The network of a run: shaped by its images, and built with the weights of its seed."""

import dataclasses
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from unistep.config import RunConfig
from unistep.errors import UserError
from unistep.networks import table
from unistep.networks.adm_config import UNetConfig
from unistep.networks.patched_config import PatchedUNetConfig
from unistep.networks.table import NETWORKS, NetworkConfig


def shaped_network(config: RunConfig, channels: int, size: int, classes: int) -> NetworkConfig:
    """The config's network, or the default one, for images of a shape.

    Args:
        config: run.
        channels: channels of an image.
        size: side of an image in pixels.
        classes: number of classes; 0 is unconditional.

    Raises:
        UserError: such images do not fit the network.
    """
    chosen: Any = config.network
    if chosen is None:
        chosen = next(iter(NETWORKS.values())).config_class()()
    try:
        return replace(
            chosen, sample_size=size, in_channels=channels, out_channels=channels, num_class_embeds=classes or None
        )
    except ValueError as error:
        raise UserError(f"`network`: {error}; set `data.resolution` or another network") from None


def built_config(config: NetworkConfig) -> NetworkConfig:
    """The architecture that `build_network` builds: the plain U-Net where nothing is folded, which diffusers opens.

    Args:
        config: architecture of a stage.
    """
    if isinstance(config, PatchedUNetConfig) and config.patch_size == 1:
        return UNetConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(UNetConfig)})
    return config


def build_network(config: NetworkConfig, seed: int) -> nn.Module:
    """A network with random weights; the global random state is left as it was.

    Args:
        config: architecture.
        seed: seed of the weights.
    """
    config = built_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it would seed the GPUs too
        return table.build_network(config)
