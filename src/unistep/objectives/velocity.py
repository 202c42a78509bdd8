"""Average velocities u(z, t, r) of flow maps, in the flow time of `unistep.core.flow`, and their derivatives."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.objectives.derivative import differentiable, jvp

Velocity = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""u(z, t, r, class_labels): images [B, C, H, W] at the times t [B], and the ends r [B], to velocities."""


@torch.no_grad()
def total_derivative(
    u: Velocity,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    v: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
    """u and du/dt along a trajectory whose end stays, by one forward-mode derivative; both without gradient.

    Args:
        u: average velocity.
        z: images on the trajectory.
        t: their times.
        r: end of each trajectory.
        v: velocity dz/dt of the trajectory.
        class_labels: classes of the images; None for a network without classes.
    """
    with differentiable(z.device.type):
        value, derivative = jvp(lambda z, t: u(z, t, r, class_labels), (z, t), (v, torch.ones_like(t)))
    return value.to(z.dtype), derivative.to(z.dtype)


@torch.no_grad()
def self_guided(
    u: Velocity,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    v: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"],
    null_labels: Int[Tensor, " B"],
    omega: Float[Tensor, " B"],
    kappa: Float[Tensor, " B"],
) -> Float[Tensor, "B C H W"]:
    """The velocity of the data guided by the model itself: omega v + (1 - omega - kappa) u(null) + kappa u(class).

    The model's velocities are u(z, t, t), without gradient.

    Args:
        u: average velocity.
        z: images.
        t: their times.
        v: velocity of the pairs of image and noise.
        class_labels: classes of the images.
        null_labels: class that stands for none, for each image.
        omega: weight of v for each image; 1 with a `kappa` of 0 is no guidance.
        kappa: weight of the model's own velocity with the class.
    """
    omega, kappa = (w.reshape(-1, 1, 1, 1).to(z.dtype) for w in (omega, kappa))
    guided = omega * v + (1 - omega - kappa) * u(z, t, t, null_labels)
    return guided + kappa * u(z, t, t, class_labels) if bool((kappa != 0).any()) else guided
