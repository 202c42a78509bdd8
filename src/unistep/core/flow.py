"""Flow time t in [0, 1], in which the methods of flow maps are published: 0 is data, 1 is noise.

    z_t = (1 - t) x + t n,   v = dz_t/dt = n - x,   n a unit Gaussian

It is the process of this package, x_sigma = x + sigma n, in other variables:

    t = sigma / (1 + sigma),   sigma = t / (1 - t),   z_t = (1 - t) x_sigma

A denoiser D and the velocity of its trajectories are one function, D = z_t - t v. So are the *average* velocity u of
the trajectory from t to an end r and the clean image that it points at, which here is a denoiser with an end:

    u = (z_t - z_r) / (t - r) = (z_t - D) / t,   x_r = (r/t) x_t + (1 - r/t) D   with noise levels for r and t

The second is Euler's step: a flow map is a denoiser by which one Euler step is exact.
"""

from jaxtyping import Float, Shaped
from torch import Tensor

from unistep.core.parameterization import expand


def time_of(sigma: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """t = sigma / (1 + sigma), in [0, 1)."""
    return sigma / (1 + sigma)


def sigma_of(t: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """sigma = t / (1 - t), infinite at t = 1."""
    return t / (1 - t)


def mixed(
    x: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"], t: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """z_t = (1 - t) x + t noise.

    Args:
        x: clean images.
        noise: unit Gaussian noise.
        t: flow time of each image.
    """
    t = expand(t, x.ndim)
    return (1 - t) * x + t * noise


def denoised(
    z: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], u: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """The clean image of a velocity: z - t u."""
    return z - expand(t, z.ndim) * u


def velocity(
    z: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], x0: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """The velocity of a clean image: (z - x0) / t, for t above 0."""
    return (z - x0) / expand(t, z.ndim)
