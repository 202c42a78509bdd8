"""Preconditioning, which makes a network a denoiser: D(x, sigma) = c_skip * x + c_out * F(c_in * x, c_noise).

EDM (Karras et al. 2022, table 1) chooses the four scalings so that F's input, its output and its training target have
unit variance for data of standard deviation sigma_data. Consistency models (Song et al. 2023, "Consistency Models",
appendix C) shift c_skip and c_out by sigma_min, so that f(x, sigma_min) = x for any network:

             EDM                                             consistency
    c_skip   sigma_data^2 / (sigma^2 + sigma_data^2)         sigma_data^2 / ((sigma - sigma_min)^2 + sigma_data^2)
    c_out    sigma * sigma_data / sqrt(sigma^2 + sd^2)       (sigma - sigma_min) * sigma_data / sqrt(sigma^2 + sd^2)
    c_in     1 / sqrt(sigma^2 + sigma_data^2)                the same

The root in the consistency c_out has the *unshifted* sigma: so the published models were trained.

Older diffusion models were trained with scalings of their own, which EDM's table 1 restates for D(x, sigma):

             VP (Song et al. 2021)               VE (ibid.)        iDDPM (Nichol and Dhariwal 2021)
    c_skip   1                                   1                 1
    c_out    -sigma                              sigma             -sigma
    c_in     1 / sqrt(sigma^2 + 1)               1                 1 / sqrt(sigma^2 + 1)
    c_noise  (M - 1) t,                          ln(sigma / 2)     M - 1 - j, u_j the level nearest to sigma
             sigma^2 = exp(beta_d t^2 / 2 + beta_min t) - 1
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from unistep.core.denoiser import round_sigma

NoiseEmbedding = Literal["adm", "edm"]


@runtime_checkable
class Scaling(Protocol):
    """The four functions of the noise level, each [B] -> [B]."""

    def c_skip(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the noisy image in the output."""
        ...

    def c_out(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the network's output."""
        ...

    def c_in(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the noisy image at the network's input."""
        ...

    def c_noise(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The noise level in the form that the network takes."""
        ...


def _c_in(sigma: Tensor, sigma_data: float) -> Tensor:
    return (sigma**2 + sigma_data**2).rsqrt()


def _c_skip(shifted: Tensor, sigma_data: float) -> Tensor:
    # sigma_data^2 / (shifted^2 + sigma_data^2), written so that it is 1 to the last bit at 0 for any sigma_data.
    return 1 / (1 + (shifted / sigma_data) ** 2)


def c_noise_of(sigma: Float[Tensor, "..."], embedding: NoiseEmbedding) -> Float[Tensor, "..."]:
    """The noise level in the form that a network takes: "adm" 250 ln(sigma), "edm" ln(sigma)/4; finite at sigma = 0."""
    # 1e-44 keeps the logarithm finite at sigma = 0 and changes no other level.
    log_sigma = (sigma + 1e-44).log()
    return 250 * log_sigma if embedding == "adm" else log_sigma / 4


@dataclass(frozen=True)
class EDMScaling:
    """The scalings of EDM denoisers, and of consistency models whose sigma_min is 0 (ECT).

    Args:
        sigma_data: standard deviation of the images.
        noise_embedding: c_noise of the network: "adm" 250 ln(sigma), "edm" ln(sigma)/4.
    """

    sigma_data: float = 0.5
    noise_embedding: NoiseEmbedding = "adm"

    def c_skip(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the noisy image in the output."""
        return _c_skip(sigma, self.sigma_data)

    def c_out(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the network's output."""
        return sigma * self.sigma_data * _c_in(sigma, self.sigma_data)

    def c_in(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the noisy image at the network's input."""
        return _c_in(sigma, self.sigma_data)

    def c_noise(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The noise level in the form that the network takes; finite at sigma = 0."""
        return c_noise_of(sigma, self.noise_embedding)


@dataclass(frozen=True)
class ConsistencyScaling:
    """The scalings of consistency functions: f(x, sigma_min) = x exactly.

    Args:
        sigma_min: noise level at which trajectories end.
        sigma_data: standard deviation of the images.
        noise_embedding: c_noise of the network: "adm" 250 ln(sigma), "edm" ln(sigma)/4.
    """

    sigma_min: float = 0.002
    sigma_data: float = 0.5
    noise_embedding: NoiseEmbedding = "adm"

    def c_skip(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the noisy image in the output; 1 at sigma_min."""
        return _c_skip(sigma - self.sigma_min, self.sigma_data)

    def c_out(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the network's output; 0 at sigma_min."""
        return (sigma - self.sigma_min) * self.sigma_data * _c_in(sigma, self.sigma_data)

    def c_in(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the noisy image at the network's input."""
        return _c_in(sigma, self.sigma_data)

    def c_noise(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The noise level in the form that the network takes; finite at sigma = 0."""
        return c_noise_of(sigma, self.noise_embedding)


class _NoisePrediction:
    """The scalings of networks that predict the noise of an image scaled to unit variance: DDPM's."""

    def c_skip(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the noisy image in the output: 1."""
        return torch.ones_like(sigma)

    def c_out(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the network's output, which is the noise."""
        return -sigma

    def c_in(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the noisy image at the network's input."""
        return _c_in(sigma, 1.0)


@dataclass(frozen=True)
class VPScaling(_NoisePrediction):
    """The scalings of variance-preserving diffusion models (DDPM in continuous time).

    Args:
        beta_d: extent of the noise schedule.
        beta_min: slope of the noise schedule at 0.
        M: number of times; c_noise is between 0 and M - 1.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000

    def c_noise(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The noise level in the form that the network takes; 0 at sigma = 0."""
        # The root of t^2 beta_d / 2 + t beta_min = ln(1 + sigma^2), written so that nothing cancels at small sigma.
        y = 2 * self.beta_d * (sigma**2).log1p()
        t = y / ((self.beta_min**2 + y).sqrt() + self.beta_min) / self.beta_d
        return (self.M - 1) * t

    def sigma(self, t: float) -> float:
        """The noise level at time `t` in [0, 1]."""
        return math.sqrt(math.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t))


@dataclass(frozen=True)
class VEScaling:
    """The scalings of variance-exploding diffusion models."""

    def c_skip(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the noisy image in the output: 1."""
        return torch.ones_like(sigma)

    def c_out(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the network's output, which is the noise with the sign changed."""
        return sigma

    def c_in(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The weight of the noisy image at the network's input: 1."""
        return torch.ones_like(sigma)

    def c_noise(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The noise level in the form that the network takes; finite at sigma = 0."""
        return (0.5 * sigma + 1e-44).log()


@dataclass(frozen=True)
class IDDPMScaling(_NoisePrediction):
    """The scalings of improved DDPM, whose networks have `M` + 1 noise levels: `u_0` the highest, `u_M` = 0.

    Args:
        C_1: smallest ratio of the schedule, which keeps the highest levels finite.
        C_2: offset of the cosine schedule.
        M: number of steps.
    """

    C_1: float = 0.001
    C_2: float = 0.008
    M: int = 1000

    def c_noise(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """M - 1 - j for the level u_j nearest to sigma, -1 where that is 0; a step function of sigma."""
        nearest = (sigma.float()[:, None] - self.levels(sigma.device)).abs().argmin(dim=1)
        return (self.M - 1 - nearest).to(sigma.dtype)

    def round_sigma(self, sigma: float) -> float:
        """Returns the level u_j nearest to `sigma`; other levels the network was not trained on."""
        levels = self.levels()
        return levels[(torch.tensor(sigma, dtype=torch.float32) - levels).abs().argmin()].item()

    def levels(self, device: torch.device | str = "cpu") -> Float[Tensor, " M1"]:
        """u_0 ... u_M, fp32, descending."""
        return _iddpm_levels(self.C_1, self.C_2, self.M).to(device)


@functools.lru_cache(maxsize=4)
def _iddpm_levels(C_1: float, C_2: float, M: int) -> Tensor:
    # In fp32 step by step, as the models were trained: the low levels are differences of nearly equal numbers.
    alpha_bar = (0.5 * math.pi * torch.arange(M + 1) / M / (C_2 + 1)).sin() ** 2
    ratios = (alpha_bar[:-1] / alpha_bar[1:]).clip(min=C_1)
    u = [torch.zeros(())]
    for ratio in ratios.flip(0):
        u.append(((u[-1] ** 2 + 1) / ratio - 1).sqrt())
    return torch.stack(u[::-1])


def expand(v: Shaped[Tensor, " B"], ndim: int) -> Shaped[Tensor, "B ..."]:
    """Appends axes of length 1 until `v` has `ndim` axes, so that it multiplies a batch image by image."""
    return v.reshape(-1, *(1,) * (ndim - 1))


class Preconditioned(nn.Module):
    """A network and a scaling: a `Denoiser`, or a `FlowMap`.

    Args:
        network: network, called as network(x, c_noise, class_labels, generator=generator); the generator draws dropout.
        scaling: scalings: `EDMScaling` makes a diffusion denoiser, `ConsistencyScaling` a consistency function.
        flow_map: true if the network is also given the end of the trajectory, as c_end = t - r in flow time.
        guidance: scale of guidance that the network is given by default, as c_guidance = 1 - 1/scale; None for one
            without this input.
    """

    def __init__(
        self, network: nn.Module, scaling: Scaling, *, flow_map: bool = False, guidance: float | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.scaling = scaling
        self.flow_map = flow_map
        self.guidance = guidance

    def round_sigma(self, sigma: float) -> float:
        """Returns the noise level nearest to `sigma` that the scaling has: `sigma` itself, of iDDPM a u_j."""
        return round_sigma(self.scaling, sigma)

    def forward(
        self,
        x_t: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        sigma_end: Float[Tensor, " B"] | None = None,
        *,
        generator: torch.Generator | None = None,
        augment_labels: Float[Tensor, "B A"] | None = None,
        guidance: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """Returns clean images in the dtype of `x_t`.

        The output of a network of lower precision is combined with x_t in the precision of x_t: at small sigma the
        result is nearly c_skip * x_t, which half precision would round.

        Args:
            x_t: noisy images.
            sigma: noise level of each image.
            class_labels: class of each image; None for an unconditional network.
            sigma_end: noise level at which each trajectory ends; None is 0.
            generator: generator of the dropout masks; None draws none.
            augment_labels: labels of each image's augmentation; None is none, and the only value for a network that
                was not trained with augmentation.
            guidance: scale of guidance of each image; None is the model's own.

        Raises:
            ValueError: an end or a scale for a network without this input.
        """
        c_skip, c_out, c_in = (
            expand(c(sigma), x_t.ndim).to(x_t.dtype)
            for c in (self.scaling.c_skip, self.scaling.c_out, self.scaling.c_in)
        )
        # Only networks trained with augmentation have this argument.
        more = {} if augment_labels is None else {"augment_labels": augment_labels}
        more |= self._further(sigma, sigma_end, guidance)
        output = self.network(c_in * x_t, self.scaling.c_noise(sigma), class_labels, generator=generator, **more)
        return c_skip * x_t + c_out * output.to(x_t.dtype)

    def _further(self, sigma: Tensor, sigma_end: Tensor | None, guidance: Tensor | None) -> dict[str, Tensor]:
        """Further inputs of the network, each in [0, 1]."""
        if (sigma_end is not None and not self.flow_map) or (guidance is not None and self.guidance is None):
            raise ValueError("this network has no input for the end of a trajectory, or none for guidance")
        more = {}
        if self.flow_map:
            t = sigma / (1 + sigma)
            more["c_end"] = t if sigma_end is None else t - sigma_end / (1 + sigma_end)
        if self.guidance is not None:
            scale = torch.full_like(sigma, self.guidance) if guidance is None else guidance
            more["c_guidance"] = 1 - 1 / scale
        return more
