"""Average velocities u(z, t, r) of flow maps, in the flow time of `unistep.core.flow`, and their derivatives."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from unistep.core import flow
from unistep.core.parameterization import Preconditioned, expand
from unistep.objectives.derivative import differentiable, jvp
from unistep.objectives.protocol import dropout_generator

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
    omega: float,
    kappa: float,
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
        omega: weight of v; 1 with a `kappa` of 0 is no guidance.
        kappa: weight of the model's own velocity with the class.
    """
    guided = omega * v + (1 - omega - kappa) * u(z, t, t, null_labels)
    return guided + kappa * u(z, t, t, class_labels) if kappa else guided


def average_velocity(student: Any, dropout_seed: int | None, guidance: Tensor | None = None) -> Velocity:
    """The average velocity of a flow map: (z - D) / t.

    Args:
        student: `Preconditioned` network with an input for the end, or one wrapped for several processes.
        dropout_seed: seed of the dropout masks, the same in every call; None draws none.
        guidance: scale of guidance of each image, for networks that have this input.
    """
    more = {} if guidance is None else {"guidance": guidance}

    def u(z: Tensor, t: Tensor, r: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sigma, end = flow.sigma_of(t), flow.sigma_of(r)
        x0 = student(
            z / expand(1 - t, z.ndim), sigma, class_labels, end, generator=dropout_generator(dropout_seed, z), **more
        )
        return flow.velocity(z, t, x0)

    return u


def unwrapped(student: Any) -> Preconditioned:
    """The flow map itself, whose forward-mode derivative passes through nothing else.

    Args:
        student: `Preconditioned` network with an input for the end, or one wrapped for several processes.

    Raises:
        ValueError: the student is no such network.
    """
    module = student.module if isinstance(student, DistributedDataParallel) else student
    if not isinstance(module, Preconditioned) or not module.flow_map:
        raise ValueError("flow maps need a student with an input for the end of the trajectory")
    return module
