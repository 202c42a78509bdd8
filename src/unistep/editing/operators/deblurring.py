"""Deblurring: the measurement is the image after a Gaussian blur, in the band that the blur leaves.

Pixels beyond the borders, which are unknown, are blurred into the image. Here the image is reflected there. If it
wrapped around, as is usual with the Fourier transform, a photograph would have an edge at its borders that the blurred
one does not show, and A+ would put it there, twenty times as strong, with waves through all of the image.

On images that wrap around the blur is diagonal in the Fourier basis, with the kernel's transform k^ on the diagonal,
real and even; one that is reflected, with its reflections, is such an image of twice the size, and stays symmetric.
Dividing by a k^ near 0 would multiply noise without bound, rounding to 8 bits included. So A keeps the frequencies
where k^ > threshold alone, and there A+ divides:

    A = F* (k^ where k^ > threshold, else 0) F,        A+ = F* (1 / k^ where k^ > threshold, else 0) F

Then A+ A is the projection on the band, A+ multiplies noise by less than 1 / threshold, and A A+ y = y for every y in
the band, as every A x is. Of another y, such as a blurred photograph, A+ takes what lies in the band.

The default threshold, 0.05, suits images of 8 bits: of smooth random ones blurred by 1 and 2 pixels and rounded A+ y is
within 2 dB of what the best of seven thresholds between 0.001 and 0.2 gives. Of such that are cut from a larger blurred
scene it leaves a third of the squared error; 0.02 leaves nine tenths, for it multiplies what the borders get wrong.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unistep.errors import UserError


class GaussianBlur:
    """Measures images blurred by a Gaussian; images of any size.

    Args:
        sigma: standard deviation of the blur, in pixels.
        threshold: share of a frequency's amplitude that the blur must leave for the frequency to be kept, in (0, 1).
        border: pixels beyond the image: "reflect" its reflection, "wrap" the image again. Compositions that begin
            with a blur that wraps around are inverted fast and exactly.

    Raises:
        UserError: `sigma` is not above 0, or `threshold` is outside (0, 1).
    """

    tight = False

    def __init__(self, sigma: float, threshold: float = 0.05, border: Literal["reflect", "wrap"] = "reflect") -> None:
        if not 0 < sigma < math.inf:
            raise UserError(f"a blur of sigma {sigma:g} pixels: give a number above 0")
        if not 0 < threshold < 1:
            raise UserError(f"the threshold {threshold:g} of deblurring must lie between 0 and 1")
        self.sigma, self.threshold, self.border = sigma, threshold, border
        self.stationary = border == "wrap"
        self.name = f"deblurring sigma {sigma:g}"

    def A(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Blurs images."""
        return self._filtered(x, lambda k: k)

    def A_pinv(self, y: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns the images of the band that become y."""
        return self._filtered(y, lambda k: torch.where(k > 0, 1 / k, 0))

    def A_T(self, y: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Applies the transpose of A, which is A: the kernel is even."""
        return self.A(y)

    def _filtered(self, x: Tensor, response: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns images whose frequencies are multiplied by `response(k^)`, k^ being 0 outside the band."""
        height, width = x.shape[2:]
        # Half precision has no transform.
        whole = x if x.dtype == torch.float64 else x.float()
        if self.border == "reflect":
            whole = torch.cat([whole, whole.flip(2)], dim=2)
            whole = torch.cat([whole, whole.flip(3)], dim=3)
        size = (whole.shape[2], whole.shape[3])
        k = _transfer(size[0], self.sigma)[:, None] * _transfer(size[1], self.sigma)[: size[1] // 2 + 1]
        k = torch.where(k > self.threshold, k, 0).to(whole)
        return torch.fft.irfft2(torch.fft.rfft2(whole) * response(k), s=size)[:, :, :height, :width].to(x.dtype)


def _transfer(size: int, sigma: float) -> Float[Tensor, " size"]:
    """Returns the transform of a Gaussian of sum 1, wrapped around `size` pixels: real and even, 1 at frequency 0."""
    wraps = math.ceil(9 * sigma / size)
    kernel = torch.exp(-0.5 * (torch.arange(-wraps * size, (wraps + 1) * size, dtype=torch.float64) / sigma) ** 2)
    kernel = kernel.view(-1, size).sum(dim=0)
    return torch.fft.fft(kernel / kernel.sum()).real
