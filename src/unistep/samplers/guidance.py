"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6) of a class-conditional diffusion model:

    D_w(x, sigma, c) = D(x, sigma, c) + (w - 1) (D(x, sigma, c) - D(x, sigma))

w = 1 is the model itself; a larger w makes images more typical of their class, and less varied.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser, round_sigma


class Guided:
    """A `Denoiser` with guidance; two evaluations in one batch.

    Args:
        denoiser: class-conditional diffusion model, trained with label dropout.
        scale: guidance scale w; 1 is none.
        null_label: class that stands for none.
    """

    def __init__(self, denoiser: Denoiser, scale: float, null_label: int) -> None:
        self.denoiser = denoiser
        self.scale = scale
        self.null_label = null_label

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        /,
    ) -> Float[Tensor, "B C H W"]:
        """Returns the guided clean images.

        Args:
            x_t: noisy images.
            sigma: noise level of each image.
            class_labels: class of each image.

        Raises:
            ValueError: no labels are given.
        """
        conditional, unconditional = self._both(x_t, sigma, class_labels)
        return conditional + (self.scale - 1) * (conditional - unconditional)

    def round_sigma(self, sigma: float) -> float:
        """Returns the level nearest to `sigma` that the denoiser has."""
        return round_sigma(self.denoiser, sigma)

    def correction(
        self, x_t: Float[Tensor, "B C H W"], sigma: Float[Tensor, " B"], class_labels: Int[Tensor, " B"] | None
    ) -> Float[Tensor, "B C H W"]:
        """The difference of the guided and the plain clean image: (w - 1) (D(x, sigma, c) - D(x, sigma)).

        Args:
            x_t: noisy images.
            sigma: noise level of each image.
            class_labels: class of each image.
        """
        conditional, unconditional = self._both(x_t, sigma, class_labels)
        return (self.scale - 1) * (conditional - unconditional)

    def _both(self, x_t: Tensor, sigma: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        if class_labels is None:
            raise ValueError("guidance needs class_labels")
        labels = torch.cat([class_labels, torch.full_like(class_labels, self.null_label)])
        x0 = self.denoiser(torch.cat([x_t, x_t]), torch.cat([sigma, sigma]), labels)
        conditional, unconditional = x0.chunk(2)
        return conditional, unconditional
