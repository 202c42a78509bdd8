import math

import pytest
import torch
from torch import nn

from unistep.training.config import OptimizerConfig
from unistep.training.optimizer import build_optimizer


def test_constant_rate():
    config = OptimizerConfig(lr=0.2)
    assert [config.lr_at(step, 10) for step in (0, 5, 9, 1000)] == [0.2] * 4


def test_warmup_rises_linearly():
    config = OptimizerConfig(lr=1.0, warmup_steps=4)
    assert [config.lr_at(step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_inverse_square_root():
    """Karras et al. 2024: flat up to the reference step, then sqrt(reference / step), whatever the run's length."""
    config = OptimizerConfig(lr=0.5, decay="inverse-sqrt", decay_steps=100, warmup_steps=10)
    assert config.lr_at(4, 1000) == 0.25
    assert [config.lr_at(step, 1000) for step in (9, 50, 100)] == [0.5] * 3
    assert config.lr_at(400, 500) == config.lr_at(400, 10_000) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="`decay_steps` 0 must be at least 1"):
        OptimizerConfig(decay_steps=0)


def test_cosine():
    config = OptimizerConfig(lr=2.0, decay="cosine", final_lr=0.1)
    assert config.lr_at(0, 100) == 2.0
    assert config.lr_at(50, 100) == pytest.approx(2 * 0.55)  # half way between 1 and 0.1
    assert config.lr_at(25, 100) == pytest.approx(2 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))
    assert config.lr_at(100, 100) == pytest.approx(0.2)
    assert config.lr_at(500, 100) == pytest.approx(0.2)
    rates = [config.lr_at(step, 100) for step in range(101)]
    assert rates == sorted(rates, reverse=True)


def test_warmup_and_cosine_multiply():
    config = OptimizerConfig(lr=1.0, warmup_steps=10, decay="cosine")
    assert config.lr_at(4, 10) == pytest.approx(0.5 * (1 + math.cos(0.4 * math.pi)) / 2)


@pytest.mark.parametrize("name", ["radam", "adamw", "muon"])
def test_first_step(name):
    """RAdam's first steps are momentum without the second moment: lr * gradient; AdamW's are lr * sign."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build_optimizer(OptimizerConfig(name, lr=0.01, weight_decay=0.5), [weight])
    weight.grad = torch.tensor([0.3, -0.1])
    optimizer.step()
    decayed = torch.tensor([1.0, -2.0]) * (1 - 0.01 * 0.5)  # decoupled: not through the moments
    direction = torch.tensor([0.3, -0.1]) if name == "radam" else torch.tensor([1.0, -1.0])
    torch.testing.assert_close(weight.detach(), decayed - 0.01 * direction, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, "`lr` 0.0 must be positive"),
        ({"lr": math.nan}, "`lr` nan must be positive"),
        ({"betas": (0.9, 1.0)}, r"`betas` \[0.9, 1.0\] must lie in \[0, 1\)"),
        ({"eps": -1e-8}, "`eps` -1e-08 must be at least 0"),
        ({"weight_decay": -1.0}, "`weight_decay` -1 must be at least 0"),
        ({"warmup_steps": -1}, "`warmup_steps` -1 must be at least 0"),
        ({"final_lr": 1.5}, r"`final_lr` 1.5 must be at most 1"),
        ({"clip_grad_norm": 0.0}, "`clip_grad_norm` 0.0 must be positive, or null"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)
