"""The optimizer; its learning rate is a pure function of the step, `OptimizerConfig.lr_at`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from unistep.training.config import OptimizerConfig


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The optimizer of `config` for parameters or groups of them; the trainer sets its learning rate every step."""
    kind = {"radam": torch.optim.RAdam, "adamw": torch.optim.AdamW}[config.name]
    extra = {"decoupled_weight_decay": True} if config.name == "radam" else {}
    return kind(parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, **extra)
