"""The optimizer; its learning rate is a pure function of the step, `OptimizerConfig.lr_at`."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from unistep.training.config import OptimizerConfig
from unistep.training.muon import Muon, flops_of, is_matrix


def build_optimizer(
    config: OptimizerConfig,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    device: torch.device | str = "cpu",
) -> torch.optim.Optimizer:
    """The optimizer of `config`; the trainer sets its learning rate every step.

    Args:
        config: its name and numbers.
        parameters: parameters or groups of them, on `device`.
        device: device that trains; on CPU and CUDA AdamW is fused: one pass over the numbers, which can skip a step.
    """
    if config.name == "muon":
        return Muon(parameters, config.lr, config.betas, config.eps, config.weight_decay)
    kind = {"radam": torch.optim.RAdam, "adamw": torch.optim.AdamW}[config.name]
    extra: dict[str, Any] = {"decoupled_weight_decay": True} if config.name == "radam" else {}
    if config.name == "adamw" and torch.device(device).type in ("cpu", "cuda"):
        extra["fused"] = True
    return kind(parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, **extra)


def moments_of(parameter: Tensor, name: str) -> int:
    """The number of averages, each as large as the parameter, that an optimizer keeps of its gradients.

    Args:
        parameter: parameter that is trained.
        name: optimizer.
    """
    return 1 if name == "muon" and is_matrix(parameter) else 2


def update_flops(parameter: Tensor, name: str) -> int:
    """FLOPs of the products with which an optimizer moves a parameter; 0 for those that go number by number.

    Args:
        parameter: parameter that is trained.
        name: optimizer.
    """
    return flops_of(parameter) if name == "muon" and is_matrix(parameter) else 0
