"""Data whose denoiser is known in closed form, networks that can learn their consistency function in seconds, and the
training loop without its files.

A mixture of Gaussians sum_k w_k N(m_k, U_k diag(s_k^2) U_k^T) is one at every noise level t, with s_k^2 + t^2 in the
place of s_k^2. So, with the coordinates z_k = U_k^T (x - m_k) of x in component k,

    D(x, t) = sum_k p(k | x) (m_k + U_k (s_k^2 / (s_k^2 + t^2) z_k)),   p(k | x) ~ w_k N(z_k; 0, s_k^2 + t^2)

One Gaussian alone also has its trajectories in closed form. The one through (x, t) is at the level r at

    m + U (sqrt((s^2 + r^2) / (s^2 + t^2)) z)

The vectors are an image's pixels, each a sample by itself; its channels are their coordinates.
"""

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unistep.core.parameterization import ConsistencyScaling, EDMScaling, Preconditioned
from unistep.core.random import ImageRandom
from unistep.objectives.protocol import MethodConfig, Objective
from unistep.training.config import OptimizerConfig
from unistep.training.ema import EMA
from unistep.training.optimizer import build_optimizer

SIGMA_DATA = 0.5


@dataclass(frozen=True)
class Mixture:
    """Images of `size` x `size` independent pixels from a mixture of K Gaussians of C channels; a `Denoiser`.

    Args:
        weights: [K], of sum 1.
        means: [K, C].
        spreads: [K, C], standard deviations along the axes.
        axes: [K, C, C], the axes of each component in columns.
        size: of the images.
    """

    weights: Tensor
    means: Tensor
    spreads: Tensor
    axes: Tensor
    size: int = 1

    def sample(self, generator: torch.Generator, count: int) -> Tensor:
        """`count` images [B, C, size, size]."""
        pixels = count * self.size**2
        noise = torch.randn(pixels, self.means.shape[1], generator=generator)
        if len(self.weights) == 1:
            return self._images(self.means + noise @ (self.axes * self.spreads[:, None])[0].T)
        k = torch.multinomial(self.weights, pixels, replacement=True, generator=generator)
        return self._images(self.means[k] + torch.einsum("nij,nj->ni", self.axes[k], self.spreads[k] * noise))

    def __call__(self, x_t: Tensor, sigma: Tensor, class_labels: Tensor | None = None, /) -> Tensor:
        """E[x | x_t], the exact denoiser."""
        z, t = self.coordinates(x_t), self._levels(sigma)
        variances = self.spreads**2 + t**2
        p = (self.weights.log() - 0.5 * (variances.log() + z**2 / variances).sum(2)).softmax(1)
        x0 = self.means + torch.einsum("kij,nkj->nki", self.axes, self.spreads**2 / variances * z)
        return self._images((p[:, :, None] * x0).sum(1))

    def moved(self, x_t: Tensor, sigma: Tensor, r: float) -> Tensor:
        """Where the trajectory of a single Gaussian through (x_t, sigma) is at level r."""
        assert len(self.weights) == 1
        z, t = self.coordinates(x_t), self._levels(sigma)
        z = ((self.spreads**2 + r**2) / (self.spreads**2 + t**2)).sqrt() * z
        return self._images((self.means + torch.einsum("kij,nkj->nki", self.axes, z))[:, 0])

    def noisy(self, sigma: float, generator: torch.Generator, count: int) -> Tensor:
        """`count` images with noise of level sigma."""
        x = self.sample(generator, count)
        return x + sigma * torch.randn(x.shape, generator=generator)

    def coordinates(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B H W, K, C], of every pixel in every component."""
        pixels = x.movedim(1, -1).reshape(-1, 1, self.means.shape[1])
        return torch.einsum("kij,nki->nkj", self.axes, pixels - self.means)

    def _levels(self, sigma: Tensor) -> Tensor:
        return sigma.repeat_interleave(self.size**2)[:, None, None]

    def _images(self, pixels: Tensor) -> Tensor:
        return pixels.reshape(-1, self.size, self.size, self.means.shape[1]).movedim(-1, 1)


def rotation(degrees: float) -> Tensor:
    """[2, 2]"""
    angle = math.radians(degrees)
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


# ---------------------------------------------------------------------------------------------------- students


def bumps_of(c_noise: Tensor, centres: Tensor) -> Tensor:
    """Gaussian bumps in ln(sigma), half a unit wide, that sum to 1; c_noise is ln(sigma)/4."""
    return torch.softmax(-2 * (4 * c_noise[:, None] - centres).square(), dim=1)


class Affine(nn.Module):
    """A x + b, with the matrix A and the vector b smooth functions of ln(sigma): can be f, and begins as zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("centres", torch.linspace(-6.0, 4.5, 16))
        self.coefficients = nn.Linear(16, channels * (channels + 1), bias=False)
        nn.init.zeros_(self.coefficients.weight)

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        coefficients = self.coefficients(bumps_of(c_noise, self.centres)).view(len(x), self.channels, -1)
        return torch.baddbmm(coefficients[:, :, -1:], coefficients[:, :, :-1], x.flatten(2)).view(x.shape)


class Perceptron(nn.Module):
    """A small network of images of one pixel, whose units ln(sigma) scales and shifts; it begins as zero."""

    def __init__(self, channels: int, width: int, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-6.0, 4.5, 16))
        self.layers = nn.ModuleList([nn.Linear(channels, width), nn.Linear(width, width)])
        self.modulations = nn.ModuleList(nn.Linear(16, 2 * width, bias=False) for _ in self.layers)
        self.last = nn.Linear(width, channels)
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=noise) / math.sqrt(layer.in_features))
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=noise))
            for p in [*self.modulations.parameters(), *self.last.parameters()]:
                p.zero_()

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        h, bumps = x.flatten(1), bumps_of(c_noise, self.centres)
        for layer, modulation in zip(self.layers, self.modulations, strict=True):
            scale, shift = modulation(bumps).chunk(2, dim=1)
            h = nn.functional.silu((1 + scale) * layer(h) + shift)
        return self.last(h).view(x.shape)


def student_of(config: MethodConfig, network: nn.Module) -> Preconditioned:
    """With the scaling that the method needs: a consistency function is the identity at sigma_min, a denoiser at 0."""
    if config.model()["kind"] == "diffusion" or config.sigma_min == 0:
        return Preconditioned(network, EDMScaling(SIGMA_DATA, noise_embedding="edm"))
    return Preconditioned(network, ConsistencyScaling(config.sigma_min, SIGMA_DATA, noise_embedding="edm"))


# ---------------------------------------------------------------------------------------------------- training


class BatchRandom(ImageRandom):
    """Draws for the whole batch from one generator: as random as one an image, and faster."""

    def __init__(self, seed: int, batch: int) -> None:
        super().__init__([seed])
        self.batch, self.generator = batch, torch.Generator().manual_seed(seed)

    def randn(self, *shape):
        return torch.randn(self.batch, *shape, generator=self.generator)

    def rand(self, *shape):
        return torch.rand(self.batch, *shape, generator=self.generator)

    def randint(self, high):
        return torch.randint(high, (self.batch,), generator=self.generator)


def train(
    student: Preconditioned,
    objective: Objective,
    data: Mixture,
    optimizer_config: OptimizerConfig,
    steps: int,
    *,
    batch: int,
    ema_decay: float,
    seed: int = 0,
) -> Preconditioned:
    """What the trainer does by the objective's protocol; returns a student with the averaged weights."""
    random = BatchRandom(seed, batch)
    for step in range(steps):
        start, end = objective.phase(step)
        end = steps if end is None else end
        if step == start:
            groups = [{"params": [*student.parameters(), *objective.parameters()]}]
            configs = [optimizer_config]
            for critic in objective.critics().values():
                groups.append({"params": list(critic.network.parameters())})
                configs.append(replace(optimizer_config, **critic.optimizer))
            optimizer, ema = build_optimizer(optimizer_config, groups), EMA(student, (ema_decay,))
        for group, config in zip(optimizer.param_groups, configs, strict=True):
            group["lr"] = config.lr_at(step - start, end - start)
        x = data.sample(random.generator, batch)
        objective.loss(student, x, None, step, random, 0).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if objective.trained(step) is None:
            objective.after_step(student, step)
            ema.update(student, step - start)
    averaged = copy.deepcopy(student).requires_grad_(False)
    averaged.load_state_dict(ema.averages[ema_decay])
    return averaged


# ------------------------------------------------------------------------------------------------- comparison


def energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'| of two sets of images, each image with itself too.

    So it is never negative, and (1/n + 1/m) E|a - a'| on average for n and m images of one distribution.
    """
    a, b = a.flatten(1), b.flatten(1)
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())
