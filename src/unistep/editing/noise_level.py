"""Estimation of the Gaussian noise in an image, from the image alone.

The finest diagonal Haar coefficient of four pixels

    h = (a - b - c + d) / 2,    |  a  b  |
                                |  c  d  |

is zero where an image is flat or a ramp, and white noise of standard deviation sigma makes it N(0, sigma^2); so
sigma = median |h| / 0.6745, which edges, being few, hardly disturb (Donoho and Johnstone 1994, "Ideal spatial
adaptation by wavelet shrinkage", section 4.2; Immerkaer 1996, "Fast noise variance estimation", has the mean instead
of the median, and h taken twice). In an image of 28 x 28 pixels edges are not few. So only those windows count whose
twelve pixels around the four vary no more than by noise: these pixels are not in h, so that the choice does not bias
the noise in h. It needs sigma, which is found by fixed-point iteration from the quarter of the windows that vary least.

Noise that was added to 8-bit pixels was also clipped at black and at white, and where an image is black (MNIST's
background) half of the noise is gone. An image without any value outside [-1, 1] is taken to be clipped. With m the
clean value, the clipped value clip(m + sigma n) has the mean and the standard deviation

    mean(m) = P(b < n) - P(n < a) + m P(a < n < b) + sigma (phi(a) - phi(b)),     a, b = (-1 - m)/sigma, (1 - m)/sigma
    E[clip^2] = P(b < n) + P(n < a) + (m^2 + sigma^2) P(a < n < b) + sigma ((m - 1) phi(a) - (m + 1) phi(b))

(Foi 2009, "Clipped noisy images: heteroskedastic modeling and practical denoising", has them for general noise), so
the mean of the twelve pixels gives the share of the noise that a window has kept, and |h| is divided by that.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from unistep.errors import UserError

_MEDIAN = 0.6744897501960817  # of |n| for unit Gaussian n
_QUIET = 0.25  # share of the windows that counts in any case
_KEPT = 2.0  # variance around a window, in units of the noise's, up to which it counts; noise alone passes in 98 of 100
_ITERATIONS = 10
_FLOOR = 1e-4  # far below a step of 8 bits
_CEILING = 100.0
_BORDER = 1e-6  # beyond [-1, 1] by this much is rounding

# Of clipped noise, h is no Gaussian: where half of the noise is clipped (m = -1 or 1), median |h| is smaller by this
# share than 0.6745 standard deviations; it fades as the clipped mean moves inwards, by a factor e in `_FADES` sigma.
_HALVED, _FADES = 0.097, 0.19


def estimate_noise(x: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Estimates the standard deviation of the Gaussian noise in each image, in units of [-1, 1], fp32.

    Measured on 200 test images each, mean and spread (standard deviation over images) of the estimate; "clipped" is
    rounded to 8 bits besides:

        sigma      CIFAR-10          clipped           MNIST             clipped
        0          0.017 +- 0.012    0.017 +- 0.012    0.000 +- 0.000    0.000 +- 0.000
        0.02       0.029 +- 0.009    0.030 +- 0.009    0.020 +- 0.002    0.021 +- 0.003
        0.05       0.056 +- 0.006    0.056 +- 0.006    0.050 +- 0.004    0.050 +- 0.007
        0.1        0.105 +- 0.006    0.104 +- 0.007    0.101 +- 0.008    0.098 +- 0.013
        0.2        0.205 +- 0.009    0.204 +- 0.009    0.202 +- 0.016    0.193 +- 0.030
        0.5        0.505 +- 0.015    0.505 +- 0.021    0.506 +- 0.036    0.469 +- 0.058
        1          1.005 +- 0.032    1.228 +- 0.138    1.006 +- 0.061    1.001 +- 0.180

    Fine texture counts as noise: of clean photographs about 0.02. Noise that is clipped on both sides is overestimated.

    Args:
        x: images; one without any value outside [-1, 1] is taken to be clipped there, as a file's pixels are.

    Raises:
        UserError: the images have less than 4 x 4 pixels.
    """
    batch, _, height, width = x.shape
    if min(height, width) < 4:
        raise UserError(f"images of {height}x{width} pixels are too small to estimate their noise", "give `sigma`")
    coefficient, mean, variance = _windows(x.float())
    clipped = x.abs().flatten(1).amax(1) <= 1 + _BORDER
    quiet = max(int(coefficient.shape[1] * _QUIET), 1)
    chosen = variance.argsort(dim=1, stable=True)[:, :quiet]
    sigma = coefficient.gather(1, chosen).median(dim=1).values / _MEDIAN
    for _ in range(_ITERATIONS):
        spread, median = _kept(mean, sigma.clamp(_FLOOR, _CEILING))
        spread = torch.where(clipped[:, None], spread, 1.0)
        median = torch.where(clipped[:, None], median, 1.0)
        around = variance / spread**2
        bound = torch.maximum(_KEPT * sigma**2, around.kthvalue(quiet, dim=1).values)
        counted = torch.where(around <= bound[:, None], coefficient / median, torch.nan)
        sigma = (counted.nanmedian(dim=1).values / _MEDIAN).clamp_max(_CEILING)
    return sigma


def _windows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns |h| of every 2 x 2 pixels of every channel, and mean and variance of the twelve around, each [B, N]."""
    batch, planes = len(x), x.flatten(0, 1)[:, None]
    diagonal = x.new_tensor([[0.5, -0.5], [-0.5, 0.5]])[None, None]
    ring = x.new_ones(1, 1, 4, 4)
    ring[:, :, 1:3, 1:3] = 0
    count = 12
    mean = functional.conv2d(planes, ring) / count
    variance = (functional.conv2d(planes**2, ring) / count - mean**2).clamp_min(0) * (count / (count - 1))
    coefficient = functional.conv2d(planes[:, :, 1:-1, 1:-1], diagonal).abs()
    return coefficient.reshape(batch, -1), mean.reshape(batch, -1), variance.reshape(batch, -1)


def _kept(mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the noise left by clipping to [-1, 1] where the clipped mean is `mean` [B, N], in units of sigma [B].

    The two values are the standard deviation and the median of |h| / 0.6745.
    """
    means, spreads = clipped_moments(torch.linspace(-1, 1, 33, device=mean.device), sigma)
    right = torch.searchsorted(means, mean.contiguous()).clamp(1, means.shape[1] - 1)
    low, high = means.gather(1, right - 1), means.gather(1, right)
    # A mean of twelve pixels may lie below that of black: extrapolated, so that errors are not one-sided.
    share = (mean - low) / (high - low).clamp_min(1e-12)
    spread = spreads.gather(1, right - 1).lerp(spreads.gather(1, right), share)
    spread = torch.maximum(spread, spreads[:, :1] / 2) / sigma[:, None]
    inwards = torch.minimum(mean - means[:, :1], means[:, -1:] - mean).clamp_min(0) / sigma[:, None]
    return spread, spread * (1 - _HALVED * torch.exp(-inwards / _FADES))


def clipped_moments(
    m: Float[Tensor, " M"], sigma: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B M"], Float[Tensor, "B M"]]:
    """Returns mean and standard deviation of m + sigma n clipped to [-1, 1], for unit Gaussian n and m in [-1, 1]."""
    m, s = m[None], sigma[:, None]
    a, b = (-1 - m) / s, (1 - m) / s
    below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
    inside = 1 - below - above
    density_a, density_b = (torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) for z in (a, b))
    mean = above - below + m * inside + s * (density_a - density_b)
    # About m, not about 0: small noise would be lost in rounding.
    square = below * (1 + m) ** 2 + above * (1 - m) ** 2 + s**2 * inside + s**2 * (a * density_a - b * density_b)
    return mean, (square - (mean - m) ** 2).clamp_min(0).sqrt()
