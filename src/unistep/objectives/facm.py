"""FACM, flow-anchored consistency (arXiv 2507.03738): flow matching beside the continuous-time consistency loss.

The paper's time runs from noise to data; here it is that of `unistep.core.flow`, t_paper = 1 - t and F_paper = -u. With
u(z, t, 0) for the average velocity to the data and u(z, t, t) for the velocity itself, the consistency loss is

    g = sg u - (v - t du/dt), its values clamped to [-1, 1],   target = sg u - (1 - (1 - t)^p) g
    L_cm = E cos(pi (1 - t) / 2) e / sqrt(sg e + 0.001),   e = mean (u - target)^2

and the anchor, which keeps the derivative meaningful,

    L_fm = E mean (u(z, t, t) - v)^2 + (1 - cosine similarity over the channels, mean over the positions)
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from unistep.core.parameterization import expand
from unistep.objectives.derivative import differentiable, jvp

OfTime = Callable[[Tensor, Tensor], Tensor]
"""u(z, t), with the end and the class filled in."""


def anchor_loss(found: Float[Tensor, "B C H W"], v: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """The flow-matching loss of each image: squared error and angle.

    Args:
        found: velocity of the model.
        v: velocity of the trajectories, without gradient.
    """
    cosine = functional.cosine_similarity(found, v, dim=1)
    return (found - v).square().flatten(1).mean(1) + (1 - cosine).flatten(1).mean(1)


def anchored_loss(
    u: OfTime,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    v: Float[Tensor, "B C H W"],
    *,
    p: float,
    ungraded: OfTime | None = None,
) -> Float[Tensor, " B"]:
    """The consistency loss of each image.

    Args:
        u: average velocity to the data.
        z: images at the times t.
        t: times.
        v: velocity of the trajectories, without gradient.
        p: exponent of the step to the target, 1 - (1 - t)^p of the whole.
        ungraded: the same function, for the derivative; None is `u`.
    """
    value = u(z, t)
    with torch.no_grad():
        with differentiable(z.device.type):
            _, du_dt = jvp(ungraded or u, (z, t), (v, torch.ones_like(t)))
        gap = value - (v - expand(t, z.ndim) * du_dt.to(z.dtype))
        target = value - expand(1 - (1 - t) ** p, z.ndim) * gap.clamp(-1, 1)
    error = (value - target).square().flatten(1).mean(1)
    return (math.pi / 2 * (1 - t)).cos() * error / (error.detach() + 1e-3).sqrt()
