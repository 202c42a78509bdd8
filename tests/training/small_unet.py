"""The network of training's tests: an ADM of 8 x 8 grey images in three classes, none of whose layers is zero."""

from typing import Any

import torch
from torch import nn

from unistep.networks.adm import UNetConfig


def small_unet(**fields: Any) -> UNetConfig:
    """A config, some of whose fields differ."""
    small = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attn_norm_num_groups": 4,
        "attention_head_dim": 8,
        "num_class_embeds": 3,
    }
    return UNetConfig(**(small | fields))


@torch.no_grad()
def move_off_zero(model: nn.Module, generator: torch.Generator) -> None:
    """Adds noise to all weights: behind layers that begin at zero most gradients would be zero."""
    for p in model.parameters():
        p.add_(0.1 * torch.randn(p.shape, generator=generator))
