"""Denoising: an image with Gaussian noise is a point of a trajectory, so it can enter the model at its own noise level.

    x0 = f(x, sigma),   x = clean image + sigma noise

One evaluation gives an image of the model's distribution that the noisy one may have come from. Further steps noise it
again to lower levels and map it back, as in algorithm 1 of Song et al. 2023, "Consistency Models": they correct errors
of the first evaluation without the noisy image. A diffusion denoiser D in the place of f gives in one evaluation the
mean of all clean images, which is the closest on average and blurred.

An image from a file has lost the part of its noise that was clipped at black and at white, and models are not trained
on such noise: `restore_clipped` adds it. On 64 MNIST images with the embedded model the PSNR of one evaluation is

    sigma      free noise     clipped    restored
    0.2        30.6           27.8       30.6
    0.5        25.1           24.3       25.0
    1          21.0           20.5       20.3
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.parameterization import expand
from unistep.editing.levels import levels_below
from unistep.editing.methods.protocol import Made
from unistep.editing.methods.sdedit import NoisedEdit, distance
from unistep.editing.noise_level import estimate_noise
from unistep.errors import UserError
from unistep.samplers.noise_source import NoiseSource, draw
from unistep.samplers.ode_step import clipped, level

_RESTORED = 0.5  # noise level up to which `restore_clipped` helps


def denoise(
    denoiser: Denoiser,
    x: Float[Tensor, "B C H W"],
    sigma: Float[Tensor, " B"] | float | None = None,
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    steps: int = 1,
    random: NoiseSource | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    clip: bool = True,
) -> Float[Tensor, "B C H W"]:
    """Removes the Gaussian noise of images.

    Args:
        denoiser: consistency function.
        x: noisy images, in units of [-1, 1]; the noise should not be clipped to it, see `restore_clipped`.
        sigma: standard deviation of the noise in the same units, of all images or of each; None estimates it. At
            sigma_min and below an image is nearly left as it is.
        class_labels: classes, passed to the denoiser.
        steps: number of evaluations.
        random: source of one draw for every step but the first; None for one step.
        sigma_min, sigma_max: levels at which the model's trajectories end and begin.
        rho: exponent of the grid of further steps.
        clip: whether the image is clamped to [-1, 1] after every evaluation.

    Raises:
        UserError: a level is negative, not finite or above sigma_max, or the images are too small to estimate it.
        ValueError: there are several steps and no `random`.
    """
    if steps > 1 and random is None:
        raise ValueError("further steps add fresh noise: give a noise source, or steps=1")
    if sigma is None:
        sigma = estimate_noise(x)
    sigmas = _each(sigma, x)
    outside = sigmas[~((sigmas >= 0) & (sigmas <= sigma_max))]
    if len(outside):
        raise UserError(f"noise of sigma {float(outside[0]):g} must lie between 0 and sigma_max {sigma_max:g}")
    denoiser = clipped(denoiser, clip)
    first, *rest = levels_below(sigmas.clamp_min(sigma_min), steps, sigma_min, rho)
    x0 = denoiser(x, first, class_labels)
    for sigma_i in rest:
        assert random is not None
        added = (sigma_i**2 - sigma_min**2).clamp_min(0).sqrt()
        x0 = denoiser(x0 + expand(added, x0.ndim).to(x0.dtype) * draw(random, x0), sigma_i, class_labels)
    return x0


def restore_clipped(
    x: Float[Tensor, "B C H W"], sigma: Float[Tensor, " B"] | float, noise: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """Returns noisy images that were clipped to [-1, 1] with new noise beyond.

    Pixels at -1 and 1 are taken for black and white ones whose noise went outwards; the others stay. Useful up to
    sigma 0.5; beyond, grey pixels reach the ends too.

    Args:
        x: images in [-1, 1].
        sigma: standard deviation of their noise, of all or of each.
        noise: unit Gaussian noise.
    """
    beyond = noise.abs() * expand(_each(sigma, x), x.ndim).to(x.dtype)
    return torch.where(x <= -1, -1 - beyond, torch.where(x >= 1, 1 + beyond, x))


class DenoisingEdit(NoisedEdit):
    """Removes the Gaussian noise of pictures by `denoise`; a `Method`.

    Args:
        x: noisy pictures, in units of [-1, 1]; the noise may go beyond it.
        sigmas: noise level of each.
        steps: number of evaluations.
        sigma_min, sigma_max, rho: noise range and grid of the model.
        clipped: whether the noise was clipped to [-1, 1], as in files; `restore_clipped` adds it where that helps.
    """

    def __init__(
        self,
        x: Float[Tensor, "N C H W"],
        sigmas: Float[Tensor, " N"],
        steps: int,
        sigma_min: float,
        sigma_max: float,
        rho: float,
        *,
        clipped: bool = False,
    ) -> None:
        super().__init__(x, [0.0] * steps, sigma_min)
        self.sigmas, self.steps, self.sigma_max, self.rho, self.clipped = sigmas, steps, sigma_max, rho, clipped

    def run(self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor | None, random: NoiseSource) -> Made:
        x, sigmas = self.x[list(rows)], self.sigmas[list(rows)].to(self.x.device)
        made = denoise(
            denoiser,
            self._restored(x, sigmas, random),
            sigmas,
            labels,
            steps=self.steps,
            random=random,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            rho=self.rho,
        )
        return Made(made, distance(made, x))

    def _with_noise(
        self, rows: Sequence[int], sigma: float, random: NoiseSource
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, " B"]]:
        x, own = self.x[list(rows)], self.sigmas[list(rows)].to(self.x.device)
        # Noise is added to the image's own.
        total = own.clamp_min(sigma)
        added = (total**2 - own**2).sqrt()[:, None, None, None] * draw(random, x)
        return self._restored(x, own, random) + added, total

    def _restored(self, x: Tensor, sigmas: Tensor, random: NoiseSource) -> Tensor:
        if not self.clipped:
            return x
        restored = restore_clipped(x, sigmas, draw(random, x))
        return torch.where((sigmas <= _RESTORED)[:, None, None, None], restored, x)


def _each(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Returns a level for every image, of the dtype of `level`."""
    return sigma.to(level(0.0, x)) if isinstance(sigma, Tensor) else level(sigma, x)
