"""Encoding of an image as noise: the probability-flow ODE of a diffusion model, solved from the image up.

dx/dt = (x - D(x, t))/t has one trajectory through every point, so going from sigma_min up to sigma_max and down again
returns to the image (Song et al. 2021, "Score-based generative modeling through stochastic differential equations",
section 4.3; DDIM inversion is the same with Euler steps). Steps have errors of their own, though, and Heun's step up is
not the inverse of Heun's step down. The inverse of a step down x_r = S(x_t) is found by iteration,

    x_t  <-  x_t + (x_r - S(x_t)),

which begins with the step up and converges for every part of the image that S does not reverse: S shrinks noise, by
(s^2 + r^2)^(1/2) / (s^2 + t^2)^(1/2) where the data's standard deviation is s.

An image without any noise is no typical point at sigma_min: where all images are the same (MNIST's border is black in
every one) the noise there is zero, and so is x_T. For sampling and interpolation x_T should be like Gaussian noise; so
with `random` the noise of sigma_min is added to the image first, the more with a larger sigma_min. Measured on 24 MNIST
test images with the embedded models, 18 steps: standard deviation of x_T, PSNR of `heun` from it, and of the
consistency model in one evaluation:

    sigma_min         x_T     heun    consistency
    0.002, no noise   0.47    54.9    23.5
    0.002             0.79    54.0    23.2
    0.01              0.95    46.9    22.3
    0.05              0.99    39.9    20.1

Without noise, refinements raise the 54.9 dB to 64.7 (1) and 80.2 (3); 40 steps in the place of 18 make 72.3, for less.
Ten steps are too few (38.0, and single pixels far off).
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.noise import karras_sigmas
from unistep.errors import UserError
from unistep.samplers.noise_source import NoiseSource, draw
from unistep.samplers.ode import rounded_levels
from unistep.samplers.ode_step import clipped, euler_step, heun_step, level


def encode(
    denoiser: Denoiser,
    x: Float[Tensor, "B C H W"],
    num_steps: int = 18,
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    refinements: int = 0,
    random: NoiseSource | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    clip: bool = True,
) -> Float[Tensor, "B C H W"]:
    """Returns the *unit* noise x_T from which `samplers.heun.heun` with the same numbers makes the images again.

    A consistency model that was trained on the same data makes nearly the same images from it in one evaluation.

    Args:
        denoiser: diffusion model.
        x: images in [-1, 1].
        num_steps: number of noise levels, at least 2; nfe = 2 (num_steps - 1), and 2 num_steps - 1 more for every
            refinement.
        class_labels: classes, passed to the denoiser.
        refinements: iterations that bring every step closer to the inverse of the sampler's.
        random: source of one draw, the noise of sigma_min; None adds none.
        sigma_min, sigma_max, rho: noise grid; a sigma_min above the model's own is allowed.
        clip: whether every clean image is clamped to [-1, 1], as by the sampler.

    Raises:
        UserError: there are fewer than 2 steps.
    """
    if num_steps < 2:
        raise UserError(f"encoding an image takes at least 2 steps, not {num_steps}", "raise the number of steps")
    levels = karras_sigmas(num_steps, sigma_min, sigma_max, rho, dtype=torch.float64).tolist()
    sigmas = rounded_levels(denoiser, levels)
    denoiser, sigma_min = clipped(denoiser, clip), sigmas[-1]

    def end(z: Tensor) -> Tensor:
        return euler_step(denoiser, z, level(sigma_min, z), level(0.0, z), class_labels)

    # The noise of sigma_min is next to nothing: x itself is the first guess.
    x = _inverse(end, x, x, refinements) if random is None else x + sigma_min * draw(random, x)
    for r, t in pairwise(reversed(sigmas)):
        low, high = level(r, x), level(t, x)

        def down(z: Tensor, low: Tensor = low, high: Tensor = high) -> Tensor:
            return heun_step(denoiser, z, high, low, class_labels)

        x = _inverse(down, x, heun_step(denoiser, x, low, high, class_labels), refinements)
    return x / sigmas[0]


def _inverse(step: Callable[[Tensor], Tensor], target: Tensor, guess: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        guess = guess + (target - step(guess))
    return guess
