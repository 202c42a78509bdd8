"""Images guided by a picture: strokes to an image, variations of an image.

SDEdit (Meng et al. 2022, "SDEdit: guided image synthesis and editing with stochastic differential equations"): noise of
a level sigma drowns what is finer or fainter than itself, so a crude picture and an image that looks like it become
hard to tell apart; from there on sampling makes an image of the model's distribution,

    x_sigma = x + sigma noise,   x0 = f(x_sigma, sigma),   then as in algorithm 1 of Song et al. 2023

A low level stays close to the picture, a high level close to the model. Artefacts that can be taken for noise go away
better without more noise, see `denoise`. With a diffusion model the ODE is solved from
the same point: `heun(denoiser, x / sigma + noise, steps, sigma_max=sigma)`. An edit that must agree with a
measurement besides is `zero_shot` from `noised(x, noise, sigma)`.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.errors import UserError
from unistep.samplers.consistency import renoise
from unistep.samplers.noise_source import NoiseSource, draw
from unistep.samplers.ode_step import clipped, level


def noised(x: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"], sigma: float) -> Float[Tensor, "B C H W"]:
    """Clean images and unit `noise` at the level `sigma`: where a guided edit begins."""
    return x + sigma * noise


def sdedit(
    denoiser: Denoiser,
    x: Float[Tensor, "B C H W"],
    sigmas: Sequence[float],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    random: NoiseSource,
    sigma_min: float = 0.002,
    clip: bool = True,
) -> Float[Tensor, "B C H W"]:
    """Images of the model's distribution that look like `x`; one evaluation at every level above sigma_min.

    Args:
        denoiser: the consistency function.
        x: the pictures to begin with, in [-1, 1].
        sigmas: the levels, strictly descending; the first says how far the result may go from `x`. At or below
            sigma_min it leaves `x` as it is.
        class_labels: passed to the denoiser.
        random: one draw for every level above sigma_min.
        sigma_min: the level at which the model's trajectories end.
        clip: clamp the image to [-1, 1] after every evaluation.

    Raises:
        UserError: no level, or they do not descend.
    """
    listed = ", ".join(f"{sigma:g}" for sigma in sigmas)
    if not sigmas or any(not a > b for a, b in zip(sigmas, sigmas[1:], strict=False)):
        raise UserError(f"noise levels [{listed}] must descend strictly, and there must be one")
    denoiser = clipped(denoiser, clip)
    for i, sigma in enumerate(sigmas):
        if sigma <= sigma_min:
            break
        noise = draw(random, x)
        # Only what the model has made carries the noise of sigma_min already.
        x_t = noised(x, noise, sigma) if i == 0 else renoise(x, noise, sigma, sigma_min)
        x = denoiser(x_t, level(sigma, x), class_labels)
    return x


def variations(
    denoiser: Denoiser,
    x: Float[Tensor, "B C H W"],
    count: int,
    sigmas: Sequence[float],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    random: NoiseSource,
    sigma_min: float = 0.002,
    clip: bool = True,
) -> Float[Tensor, "BN C H W"]:
    """`count` images like each of `x`, those of one image side by side: `sdedit` with a noise of its own for each.

    Args:
        denoiser, x, sigmas, sigma_min, clip: as in `sdedit`.
        count: variations of an image, at least 1.
        class_labels: of the images of `x`.
        random: for B * count images; one generator each, in the order of the result.

    Raises:
        UserError: count below 1, or levels as in `sdedit`.
    """
    if count < 1:
        raise UserError(f"an image has at least one variation, not {count}")
    labels = None if class_labels is None else class_labels.repeat_interleave(count)
    many = x.repeat_interleave(count, dim=0)
    return sdedit(denoiser, many, sigmas, labels, random=random, sigma_min=sigma_min, clip=clip)
