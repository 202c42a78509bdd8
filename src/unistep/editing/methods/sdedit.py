"""SDEdit: images like a given picture, from coarse strokes or as variations of an image.

Noise of a level sigma hides what is finer or fainter than itself, so that a crude picture and an image that looks like
it become hard to tell apart; sampling from there on makes an image of the model's distribution (Meng et al. 2022,
"SDEdit: guided image synthesis and editing with stochastic differential equations"),

    x_sigma = x + sigma noise,   x0 = f(x_sigma, sigma),   then as in algorithm 1 of Song et al. 2023

A low level stays close to the picture, a high level close to the model. Artefacts that can be taken for noise are
removed better without more noise, see `denoise`. With a diffusion model the ODE is solved from the same point:
`heun(denoiser, x / sigma + noise, steps, sigma_max=sigma)`. An edit that must also agree with a measurement is
`zero_shot` from `noised(x, noise, sigma)`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.pixels import to_uint8
from unistep.editing.methods.protocol import Made
from unistep.errors import UserError
from unistep.samplers.consistency import renoise
from unistep.samplers.noise_source import NoiseSource, draw
from unistep.samplers.ode_step import clipped, level


def noised(x: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"], sigma: float) -> Float[Tensor, "B C H W"]:
    """Returns clean images with unit `noise` of the level `sigma`, at which SDEdit begins."""
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
    """Samples images that resemble `x` from the model, in one evaluation at every level above sigma_min.

    Args:
        denoiser: consistency function.
        x: pictures in [-1, 1].
        sigmas: noise levels, strictly descending; a higher first level lets results differ more from `x`, and one at or
            below sigma_min leaves `x` unchanged.
        class_labels: classes, passed to the denoiser.
        random: source of one draw for every level above sigma_min.
        sigma_min: level at which the model's trajectories end.
        clip: whether the image is clamped to [-1, 1] after every evaluation.

    Raises:
        UserError: there is no level, or they do not descend.
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
    """Makes `count` images like each of `x`, those of one image in a row: `sdedit` with a noise of its own for each.

    Args:
        denoiser: consistency function.
        x: pictures in [-1, 1].
        count: number of variations of an image, at least 1.
        sigmas: noise levels, strictly descending; the first decides how far a result may go from its picture.
        class_labels: class of each image of `x`.
        random: source of noise for B * count images, in the order of the result.
        sigma_min: level at which the model's trajectories end.
        clip: whether the images are clamped to [-1, 1] after every evaluation.

    Returns:
        B * count images in [-1, 1] where `clip` is true, the variations of the first picture first.

    Raises:
        UserError: `count` is below 1, or the levels are refused by `sdedit`.
    """
    if count < 1:
        raise UserError(f"an image has at least one variation, not {count}")
    labels = None if class_labels is None else class_labels.repeat_interleave(count)
    many = x.repeat_interleave(count, dim=0)
    return sdedit(denoiser, many, sigmas, labels, random=random, sigma_min=sigma_min, clip=clip)


class NoisedEdit:
    """Adds noise to pictures and removes it again by `sdedit`; a `Method`.

    Args:
        x: pictures in [-1, 1].
        levels: noise levels, descending; the first decides how far a result may go from its picture.
        sigma_min: level at which the model's trajectories end.
    """

    def __init__(self, x: Float[Tensor, "N C H W"], levels: Sequence[float], sigma_min: float) -> None:
        self.x, self.levels, self.sigma_min = x, levels, sigma_min
        channels, height, width = x.shape[1:]
        self.size = (channels, height, width)
        self.evaluations = len(levels)

    def __len__(self) -> int:
        return len(self.x)

    def group(self, index: int) -> int:
        return 0

    def run(self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor | None, random: NoiseSource) -> Made:
        x = self.x[list(rows)]
        made = sdedit(denoiser, x, self.levels, labels, random=random, sigma_min=self.sigma_min)
        return Made(made, distance(made, x))

    def finish(self, row: int, x: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C H W"]:
        return x

    def class_residuals(
        self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor, random: NoiseSource, sigmas: Sequence[float]
    ) -> Float[Tensor, "L B"]:
        x, residuals = self.x[list(rows)], []
        for sigma in sigmas:
            x_t, own = self._with_noise(rows, sigma, random)
            residuals.append(distance(denoiser(x_t, own, labels).clamp(-1, 1), x))
        return torch.stack(residuals)

    def _with_noise(
        self, rows: Sequence[int], sigma: float, random: NoiseSource
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, " B"]]:
        """Returns the pictures with noise of a level, and the level that each then has."""
        x = self.x[list(rows)]
        return noised(x, draw(random, x), sigma), level(sigma, x)

    def measurement(self) -> UInt8[Tensor, "N C H W"]:
        return to_uint8(self.x).cpu()


def distance(a: Float[Tensor, "B C H W"], b: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Returns the root mean square of the difference of every pair of images."""
    return (a - b).flatten(1).square().mean(dim=1).sqrt()
