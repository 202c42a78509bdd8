"""Edits that begin with an image as it is, and noise: denoising, JPEG artefacts, strokes, variations; `Method`s."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.pixels import to_uint8
from unistep.editing.methods.denoise import denoise, restore_clipped
from unistep.editing.methods.protocol import Made
from unistep.editing.methods.sdedit import noised, sdedit
from unistep.samplers.noise_source import NoiseSource, draw
from unistep.samplers.ode_step import level

_RESTORED = 0.5  # noise up to which `restore_clipped` helps


class Guided:
    """Noise is added to pictures and taken away again: `unistep.editing.methods.sdedit.sdedit`.

    Args:
        x: the pictures, in [-1, 1].
        levels: noise levels, descending; the first says how far a result may leave its picture.
        sigma_min: where the model's trajectories end.
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
        return Made(made, _apart(made, x))

    def finish(self, row: int, x: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C H W"]:
        return x

    def misfit(
        self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor, random: NoiseSource, sigmas: Sequence[float]
    ) -> Float[Tensor, "L B"]:
        x, apart = self.x[list(rows)], []
        for sigma in sigmas:
            x_t, own = self._with_noise(rows, sigma, random)
            apart.append(_apart(denoiser(x_t, own, labels).clamp(-1, 1), x))
        return torch.stack(apart)

    def _with_noise(
        self, rows: Sequence[int], sigma: float, random: NoiseSource
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, " B"]]:
        """The pictures with noise of a level, and how much that is."""
        x = self.x[list(rows)]
        return noised(x, draw(random, x), sigma), level(sigma, x)

    def measurement(self) -> UInt8[Tensor, "N C H W"]:
        return to_uint8(self.x).cpu()


class Noisy(Guided):
    """Pictures with Gaussian noise, which is taken away: `unistep.editing.methods.denoise.denoise`.

    Args:
        x: the pictures; their noise may take them beyond [-1, 1].
        sigmas: the noise of each, in the same units.
        steps: evaluations.
        sigma_min, sigma_max, rho: the model's noise range and grid.
        cut_off: the noise was cut off at black and white, as in files; it is given anew there, where that helps.
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
        cut_off: bool = False,
    ) -> None:
        super().__init__(x, [0.0] * steps, sigma_min)
        self.sigmas, self.steps, self.sigma_max, self.rho, self.cut_off = sigmas, steps, sigma_max, rho, cut_off

    def run(self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor | None, random: NoiseSource) -> Made:
        x, sigmas = self.x[list(rows)], self.sigmas[list(rows)].to(self.x.device)
        made = denoise(
            denoiser,
            self._whole(x, sigmas, random),
            sigmas,
            labels,
            steps=self.steps,
            random=random,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            rho=self.rho,
        )
        return Made(made, _apart(made, x))

    def _with_noise(
        self, rows: Sequence[int], sigma: float, random: NoiseSource
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, " B"]]:
        x, own = self.x[list(rows)], self.sigmas[list(rows)].to(self.x.device)
        # Noise is added to that which is there.
        total = own.clamp_min(sigma)
        added = (total**2 - own**2).sqrt()[:, None, None, None] * draw(random, x)
        return self._whole(x, own, random) + added, total

    def _whole(self, x: Tensor, sigmas: Tensor, random: NoiseSource) -> Tensor:
        if not self.cut_off:
            return x
        restored = restore_clipped(x, sigmas, draw(random, x))
        return torch.where((sigmas <= _RESTORED)[:, None, None, None], restored, x)


def _apart(a: Tensor, b: Tensor) -> Float[Tensor, " B"]:
    return (a - b).flatten(1).square().mean(dim=1).sqrt()
