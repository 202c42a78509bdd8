"""How a network becomes a denoiser: D(x, sigma) = c_skip * x + c_out * F(c_in * x, c_noise).

EDM (Karras et al. 2022, table 1) chooses the four scalings so that F's input, its output and its training target have
unit variance for data of standard deviation sigma_data. Consistency models (Song et al. 2023, "Consistency Models",
appendix C) shift c_skip and c_out by sigma_min, so that f(x, sigma_min) = x whatever the network says:

             EDM                                             consistency
    c_skip   sigma_data^2 / (sigma^2 + sigma_data^2)         sigma_data^2 / ((sigma - sigma_min)^2 + sigma_data^2)
    c_out    sigma * sigma_data / sqrt(sigma^2 + sd^2)       (sigma - sigma_min) * sigma_data / sqrt(sigma^2 + sd^2)
    c_in     1 / sqrt(sigma^2 + sigma_data^2)                the same

The root in the consistency c_out has the *unshifted* sigma: so the published models were trained.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

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
        """The noise level as the network is told it."""
        ...


def _c_in(sigma: Tensor, sigma_data: float) -> Tensor:
    return (sigma**2 + sigma_data**2).rsqrt()


def _c_skip(shifted: Tensor, sigma_data: float) -> Tensor:
    # sigma_data^2 / (shifted^2 + sigma_data^2), written so that it is 1 to the last bit at 0 for any sigma_data.
    return 1 / (1 + (shifted / sigma_data) ** 2)


def _c_noise(sigma: Tensor, embedding: NoiseEmbedding) -> Tensor:
    # 1e-44 keeps the logarithm finite at sigma = 0 and changes no other level.
    log_sigma = (sigma + 1e-44).log()
    return 250 * log_sigma if embedding == "adm" else log_sigma / 4


@dataclass(frozen=True)
class EDMScaling:
    """The scalings of EDM denoisers, and of consistency models whose sigma_min is 0 (ECT).

    Args:
        sigma_data: standard deviation of the images.
        noise_embedding: "adm" tells the network 250 ln(sigma), "edm" ln(sigma)/4.
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
        """The noise level as the network is told it; finite at sigma = 0."""
        return _c_noise(sigma, self.noise_embedding)


@dataclass(frozen=True)
class ConsistencyScaling:
    """The scalings of consistency functions: f(x, sigma_min) = x exactly.

    Args:
        sigma_min: the noise level at which trajectories end.
        sigma_data: standard deviation of the images.
        noise_embedding: "adm" tells the network 250 ln(sigma), "edm" ln(sigma)/4.
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
        """The noise level as the network is told it; finite at sigma = 0."""
        return _c_noise(sigma, self.noise_embedding)


def expand(v: Shaped[Tensor, " B"], ndim: int) -> Shaped[Tensor, "B ..."]:
    """Appends axes of length 1 until `v` has `ndim` axes, so that it multiplies a batch image by image."""
    return v.reshape(-1, *(1,) * (ndim - 1))


class Preconditioned(nn.Module):
    """A network and a scaling: a `Denoiser`.

    Args:
        network: called as network(x, c_noise, class_labels, generator=generator); the generator draws its dropout.
        scaling: `EDMScaling` makes a diffusion denoiser of it, `ConsistencyScaling` a consistency function.
    """

    def __init__(self, network: nn.Module, scaling: Scaling) -> None:
        super().__init__()
        self.network = network
        self.scaling = scaling

    def forward(
        self,
        x_t: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """The clean images for the noisy images `x_t` at noise levels `sigma`, in the dtype of `x_t`.

        A network of lower precision is thus combined with x_t in the precision of x_t: at small sigma the output
        is nearly c_skip * x_t, which half precision would round.
        """
        c_skip, c_out, c_in = (
            expand(c(sigma), x_t.ndim).to(x_t.dtype)
            for c in (self.scaling.c_skip, self.scaling.c_out, self.scaling.c_in)
        )
        output = self.network(c_in * x_t, self.scaling.c_noise(sigma), class_labels, generator=generator)
        return c_skip * x_t + c_out * output.to(x_t.dtype)
