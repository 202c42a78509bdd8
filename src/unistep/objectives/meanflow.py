"""MeanFlow: the average velocity of a trajectory, learned from its own derivative (Geng et al. 2025, arXiv 2505.13447).

In flow time (`unistep.core.flow`) the average velocity over [r, t] satisfies

    u(z_t, t, r) = v(z_t, t) - (t - r) d/dt u(z_t, t, r)

The loss is the squared difference of the two sides, the right one without gradient: v is the velocity n - x of the pair
of image and noise, whose mean given z_t is that of the trajectory, and the derivative along (v, 1, 0) is one jvp.

    L = E w || u - sg(v - (t - r) du/dt) ||^2,   w = 1/(|| ||^2 + c)^p without gradient,   || || of the whole image
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.parameterization import expand
from unistep.core.weighting import adaptive
from unistep.objectives.velocity import Velocity, total_derivative


def meanflow_loss(
    u: Velocity,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    v: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    p: float,
    c: float,
    graded: Velocity | None = None,
) -> Float[Tensor, " B"]:
    """MeanFlow's loss of each image.

    Args:
        u: average velocity, for the derivative.
        z: images at the times t.
        t: times.
        r: ends, at most t.
        v: velocity of the trajectories, without gradient.
        class_labels: classes of the images; None for a network without classes.
        p, c: exponent and constant of the adaptive weight.
        graded: the same function, for the pass with gradients; None is `u`.
    """
    target = u_target(u, z, t, r, v, class_labels)
    error = ((graded or u)(z, t, r, class_labels) - target).square().flatten(1).sum(1)
    return adaptive(error, c, p) * error


@torch.no_grad()
def u_target(
    u: Velocity,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    v: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """v - (t - r) du/dt: the arguments are those of `meanflow_loss`."""
    _, du_dt = total_derivative(u, z, t, r, v, class_labels)
    return v - expand(t - r, z.ndim) * du_dt


def optimal_gradient_loss(
    u: Velocity,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    v: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    p: float,
    c: float,
    graded: Velocity | None = None,
) -> Float[Tensor, " B"]:
    """The loss whose gradient is the step to the target over a power of its length, 1/(length + c)^p.

    The arguments are those of `meanflow_loss`; the weight there is a function of the squared length.
    """
    value = (graded or u)(z, t, r, class_labels)
    step = u_target(u, z, t, r, v, class_labels) - value.detach()
    step = expand(adaptive(step.flatten(1).norm(dim=1), c, p), z.ndim) * step
    return (value - (value.detach() + step)).square().flatten(1).sum(1)
