"""TrigFlow (Lu and Song 2024, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models", 2410.11081).

Noise is mixed in by rotation, with a time t in [0, pi/2] and noise of the data's standard deviation sigma_d:

    x_t = cos(t) x + sin(t) sigma_d z,   z a unit Gaussian

It is the process of this package, x_sigma = x + sigma z, in other variables:

    sigma = sigma_d tan(t),   x_t = cos(t) x_sigma

and EDM's preconditioning of a network F_edm with sigma_min = 0 is exactly TrigFlow's, of F = -F_edm:

    f(x_t, t) = cos(t) x_t - sin(t) sigma_d F(x_t / sigma_d, t)
    D(x_sigma, sigma) = c_skip x_sigma + c_out F_edm(c_in x_sigma, c_noise)
    c_skip = cos(t)^2,   c_out = sin(t) sigma_d,   c_in = cos(t) / sigma_d

A diffusion model's F is, times sigma_d, the velocity of its probability-flow ODE: dx_t/dt = sigma_d F. As any denoiser
gives an F by (cos(t) x_t - D) / (sin(t) sigma_d), any denoiser has a velocity.
"""

from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.parameterization import Preconditioned, expand


def time_of(sigma: Float[Tensor, " B"], sigma_data: float = 0.5) -> Float[Tensor, " B"]:
    """t = arctan(sigma / sigma_d), in [0, pi/2)."""
    return (sigma / sigma_data).atan()


def sigma_of(t: Float[Tensor, " B"], sigma_data: float = 0.5) -> Float[Tensor, " B"]:
    """sigma = sigma_d tan(t)."""
    return sigma_data * t.tan()


def sin_cos(sigma: Float[Tensor, " B"], sigma_data: float = 0.5) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """sin(t) and cos(t) of the time of `sigma`, to the last digits at both ends of the range."""
    tan = sigma / sigma_data
    cos = (1 + tan**2).rsqrt()
    return tan * cos, cos


def rotated(
    x_sigma: Float[Tensor, "B C H W"], sigma: Float[Tensor, " B"], sigma_data: float = 0.5
) -> Float[Tensor, "B C H W"]:
    """x_t of x_sigma.

    Args:
        x_sigma: images with noise of standard deviation sigma.
        sigma: noise level of each image.
        sigma_data: standard deviation of the images.
    """
    return expand(sin_cos(sigma, sigma_data)[1], x_sigma.ndim) * x_sigma


def unrotated(
    x_t: Float[Tensor, "B C H W"], sigma: Float[Tensor, " B"], sigma_data: float = 0.5
) -> Float[Tensor, "B C H W"]:
    """x_sigma of x_t.

    Args:
        x_t: rotated images.
        sigma: noise level of each image.
        sigma_data: standard deviation of the images.
    """
    return x_t / expand(sin_cos(sigma, sigma_data)[1], x_t.ndim)


def end_point(
    F: Float[Tensor, "B C H W"], x_t: Float[Tensor, "B C H W"], t: Float[Tensor, " B"], sigma_data: float = 0.5
) -> Float[Tensor, "B C H W"]:
    """f = cos(t) x_t - sin(t) sigma_d F.

    Args:
        F: network outputs in TrigFlow's sign.
        x_t: rotated images.
        t: angle of each image.
        sigma_data: standard deviation of the images.
    """
    t = expand(t, x_t.ndim)
    return t.cos() * x_t - t.sin() * sigma_data * F


def velocity(
    denoiser: Denoiser,
    x_sigma: Float[Tensor, "B C H W"],
    sigma: Float[Tensor, " B"],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    sigma_data: float = 0.5,
) -> Float[Tensor, "B C H W"]:
    """dx_t/dt = sigma_d F of any denoiser, at x_t = cos(t) x_sigma; sigma > 0.

    (cos(t) x_t - D) / sin(t) is a small difference of large numbers at small t. Of a `Preconditioned` network, whatever
    its scaling, the velocity is therefore formed from the network's output, which keeps all digits; of anything else
    it has an error of about 1e-7 |x| sigma_d / sigma in fp32.

    Args:
        denoiser: denoiser of any kind.
        x_sigma: images with noise of standard deviation sigma.
        sigma: noise level of each image, above 0.
        class_labels: class of each image; None for an unconditional model.
        sigma_data: standard deviation of the images.
    """
    # The coefficients are differences too; they are one number an image.
    exact = sigma if sigma.device.type == "mps" else sigma.double()
    sin, cos = sin_cos(exact, sigma_data)

    def coefficient(v: Tensor) -> Tensor:
        return expand(v, x_sigma.ndim).to(x_sigma.dtype)

    if not isinstance(denoiser, Preconditioned):
        x0 = denoiser(x_sigma, sigma, class_labels)
        return (coefficient(cos**2) * x_sigma - x0) / coefficient(sin)
    scaling = denoiser.scaling
    output = denoiser.network(coefficient(scaling.c_in(sigma)) * x_sigma, scaling.c_noise(sigma), class_labels)
    # As EDMScaling has it, so that the difference is 0 there and not a rounding error over sin(t).
    cos2 = 1 / (1 + (exact / sigma_data) ** 2)
    a = coefficient((cos2 - scaling.c_skip(exact)) / sin)
    return a * x_sigma - coefficient(scaling.c_out(exact) / sin) * output.to(x_sigma.dtype)


def network_output(
    denoiser: Denoiser,
    x_sigma: Float[Tensor, "B C H W"],
    sigma: Float[Tensor, " B"],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    sigma_data: float = 0.5,
) -> Float[Tensor, "B C H W"]:
    """F(x_t / sigma_d, t) of any denoiser: its `velocity` in units of sigma_d, with the same arguments."""
    return velocity(denoiser, x_sigma, sigma, class_labels, sigma_data=sigma_data) / sigma_data
