"""One step along the probability-flow ODE, from noise level t to a smaller noise level r.

In the EDM convention the ODE of a denoiser D is (Karras et al. 2022, eq. 1 and 3 with sigma(t) = t):

    dx/dt = (x - D(x, t)) / t

Levels are given per image, so that the objectives can step every image of a batch along its own pair.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.parameterization import expand


def slope(
    x: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], x0: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """dx/dt at (x, t) where the denoiser says x0; t > 0."""
    return (x - x0) / expand(t, x.ndim).to(x.dtype)


def move(
    x: Float[Tensor, "B C H W"], d: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], r: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """The straight line from (x, t) along the slope d to r."""
    return x + d * expand(r - t, x.ndim).to(x.dtype)


def euler_step(
    denoiser: Denoiser,
    x: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    class_labels: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """First order, one evaluation; r may be 0."""
    return move(x, slope(x, t, denoiser(x, t, class_labels)), t, r)


def heun_step(
    denoiser: Denoiser,
    x: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    class_labels: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Second order, two evaluations (Karras et al. 2022, algorithm 1); r must be positive."""
    d_t = slope(x, t, denoiser(x, t, class_labels))
    x_r = move(x, d_t, t, r)
    d_r = slope(x_r, r, denoiser(x_r, r, class_labels))
    return move(x, (d_t + d_r) / 2, t, r)


def dpm2_step(
    denoiser: Denoiser,
    x: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    class_labels: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Second order, two evaluations: the slope half-way between t and r on a rho = 3 Karras grid; r may be 0."""
    middle = ((t ** (1 / 3) + r ** (1 / 3)) / 2) ** 3
    x_middle = euler_step(denoiser, x, t, middle, class_labels)
    return move(x, slope(x_middle, middle, denoiser(x_middle, middle, class_labels)), t, r)


def level(sigma: float, x: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """One noise level for every image of `x`; fp32 at least, for half precision rounds levels visibly."""
    return torch.full((len(x),), sigma, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))


def clipped(denoiser: Denoiser, clip: bool) -> Denoiser:
    """The denoiser with its output clamped to [-1, 1], or as it is."""
    if not clip:
        return denoiser

    def clamped(x_t: Tensor, sigma: Tensor, class_labels: Tensor | None = None, /) -> Tensor:
        return denoiser(x_t, sigma, class_labels).clamp(-1, 1)

    return clamped
