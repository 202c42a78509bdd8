"""Every row of METHODS learns the known consistency function of Gaussian data.

For data N(mu, diag(s^2)) the denoiser and the trajectories are known, coordinate by coordinate:

    D(x, t) = mu + s^2/(s^2 + t^2) (x - mu)
    f(x, t) = mu + sqrt((s^2 + sigma_min^2)/(s^2 + t^2)) (x - mu)

A row added to METHODS is tested as it stands; LENGTHS only says how long and how fine the curriculum is.
"""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from unistep.core.noise import karras_sigmas
from unistep.core.parameterization import ConsistencyScaling, EDMScaling, Preconditioned, expand
from unistep.core.random import ImageRandom
from unistep.objectives.consistency import ConsistencyObjective, copy_target
from unistep.objectives.methods import METHODS

# One image is [1, 2, 2]: four independent coordinates.
MU = torch.tensor([0.4, -0.3, 0.0, 0.1]).reshape(1, 2, 2)
S = torch.tensor([0.25, 0.5, 0.8, 0.4]).reshape(1, 2, 2)
BATCH = int(__import__("os").environ.get("BS","256"))
SL = float(__import__("os").environ.get("SL","1"))

STEPS = {"cd": 2000}
DEFAULT_STEPS = 2000
# CT steps along the expected noise, which is Euler's method: its error at the published 200 scales is 1.5 %.
LENGTHS = {"ct": {"start_scales": int(__import__("os").environ.get("S0","20")), "end_scales": int(__import__("os").environ.get("S1","400")), "ema_decay": float(__import__("os").environ.get("MU0","0.95"))}}


class BatchRandom(ImageRandom):
    """Draws as `ImageRandom` does, from one generator for the whole batch: as random, and faster."""

    def __init__(self, seed: int) -> None:
        super().__init__([seed])

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, generator=self.generators[0])

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(BATCH, *shape, generator=self.generators[0])

    def randint(self, high: int) -> Tensor:
        return torch.randint(high, (BATCH,), generator=self.generators[0])


class Affine(nn.Module):
    """Every coordinate times a(c_noise) plus b(c_noise), both from a small MLP: can be f, and must learn it."""

    def __init__(self, width: int = int(__import__("os").environ.get("W","64"))) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2 * MU.numel())
        )

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        a, b = self.mlp(SL * c_noise[:, None]).reshape(len(x), 2, *MU.shape).unbind(1)
        return a * x + b


def teacher(x_t, sigma, class_labels=None, /):
    sigma = expand(sigma, x_t.ndim)
    return MU + S**2 / (S**2 + sigma**2) * (x_t - MU)


def consistency_function(x_t, t, sigma_min):
    return MU + ((S**2 + sigma_min**2) / (S**2 + expand(t, x_t.ndim) ** 2)).sqrt() * (x_t - MU)


def train(name: str, lr: float = 3e-3) -> Preconditioned:
    config = dataclasses.replace(METHODS[name], **LENGTHS.get(name, {}))
    steps = STEPS.get(name, DEFAULT_STEPS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Affine()
    scaling = EDMScaling(noise_embedding="edm")
    if config.sigma_min > 0:
        scaling = ConsistencyScaling(config.sigma_min, noise_embedding="edm")
    student = Preconditioned(network, scaling)
    objective = ConsistencyObjective(config, steps, teacher=teacher, target=copy_target(student))
    random = BatchRandom(0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        x = MU + S * random.randn(*MU.shape)
        loss = objective.loss(student, x, None, step, random, 0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        objective.after_step(student, step)
    return student


@torch.no_grad()
def errors(student, sigma_min: float) -> Tensor:
    """RMS of the error over the RMS of f - mu, at each level of a grid from sigma_max down."""
    g = torch.Generator().manual_seed(1)
    relative = []
    for sigma in karras_sigmas(18)[:-1]:
        t = sigma.expand(1024)
        x_t = MU + (S**2 + sigma**2).sqrt() * torch.randn(1024, *MU.shape, generator=g)
        f = consistency_function(x_t, t, sigma_min)
        relative.append((student(x_t, t) - f).square().mean().sqrt() / (f - MU).square().mean().sqrt())
    return torch.stack(relative)


if __name__ == "__main__":
    import sys, time
    torch.set_num_threads(1)
    name, steps, lr = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    STEPS[name] = steps
    a = time.process_time(); b = time.time()
    s = train(name, lr)
    e = errors(s, METHODS[name].sigma_min)
    print(name, steps, lr, f"cpu {time.process_time() - a:.1f}s wall {time.time()-b:.1f}", "rms %.4f" % e.square().mean().sqrt(), [round(v, 4) for v in e.tolist()])
