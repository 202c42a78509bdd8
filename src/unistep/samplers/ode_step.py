"""One step along the probability-flow ODE, from noise level t to a smaller noise level r.

In the EDM convention the ODE of a denoiser D is (Karras et al. 2022, eq. 1 and 3 with sigma(t) = t):

    dx/dt = (x - D(x, t)) / t

Every image has its own levels, so that the objectives can step each image of a batch along its own pair.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.parameterization import expand


def slope(
    x: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], x0: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """dx/dt at (x, t).

    Args:
        x: images.
        t: noise level of each image, above 0.
        x0: output of the denoiser at (x, t).
    """
    return (x - x0) / expand(t, x.ndim).to(x.dtype)


def move(
    x: Float[Tensor, "B C H W"], d: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], r: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """The straight line from (x, t) to level r.

    Args:
        x: images.
        d: slope dx/dt of the line.
        t: noise level of each image.
        r: noise level at the end.
    """
    return x + d * expand(r - t, x.ndim).to(x.dtype)


def euler_step(
    denoiser: Denoiser,
    x: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    class_labels: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Euler's step: first order, one evaluation.

    Args:
        denoiser: diffusion model.
        x: images [B, C, H, W].
        t: noise level of each image, above 0.
        r: lower noise level of each image, which may be 0.
        class_labels: class of each image; None for an unconditional model.
    """
    return move(x, slope(x, t, denoiser(x, t, class_labels)), t, r)


def heun_step(
    denoiser: Denoiser,
    x: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    class_labels: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Heun's step (Karras et al. 2022, algorithm 1): second order, two evaluations.

    Args:
        denoiser: diffusion model.
        x: images [B, C, H, W].
        t: noise level of each image, above 0.
        r: lower noise level of each image, above 0.
        class_labels: class of each image; None for an unconditional model.
    """
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
    """The step of DPM-Solver-2: second order, two evaluations.

    The slope is that half-way between t and r on a Karras grid of rho = 3.

    Args:
        denoiser: diffusion model.
        x: images [B, C, H, W].
        t: noise level of each image, above 0.
        r: lower noise level of each image, which may be 0.
        class_labels: class of each image; None for an unconditional model.
    """
    middle = ((t ** (1 / 3) + r ** (1 / 3)) / 2) ** 3
    x_middle = euler_step(denoiser, x, t, middle, class_labels)
    return move(x, slope(x_middle, middle, denoiser(x_middle, middle, class_labels)), t, r)


def level(sigma: float, x: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """The noise level of every image of a batch, in fp32 at least, as half precision would round it visibly.

    Args:
        sigma: noise level.
        x: images.
    """
    return torch.full((x.shape[0],), sigma, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))


def clipped(denoiser: Denoiser, clip: bool) -> Denoiser:
    """The denoiser with its output clamped to [-1, 1] if `clip` is true."""
    if not clip:
        return denoiser

    def clamped(x_t: Tensor, sigma: Tensor, class_labels: Tensor | None = None, /) -> Tensor:
        return denoiser(x_t, sigma, class_labels).clamp(-1, 1)

    return clamped
