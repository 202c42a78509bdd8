"""Improved MeanFlow (iMF, arXiv 2512.02012): MeanFlow as a loss of the velocity, with guidance as an input.

    V = u + (t - r) sg(du/dt),   L = E w || V - v_g ||^2 + w' || v_head - v_g ||^2,   w = 1/(|| ||^2 + c)^p

The derivative is along the model's own velocity v_c with the class in place of n - x, and the target is guided by the
model itself. The scale omega of the guidance is an input of the network, drawn for each image:

    v_g = n - x + (1 - 1/omega) (v_c - v_null)

so that it can be chosen when sampling. It is 1 outside an interval of times, which is an input too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unistep.core.parameterization import expand
from unistep.core.weighting import adaptive
from unistep.objectives.velocity import total_derivative


@dataclass(frozen=True)
class GuidanceInput:
    """Guidance of each image, as the network takes it.

    Args:
        scale: scale omega, at least 1; 1 is none.
        start, end: times between which it holds.
    """

    scale: Float[Tensor, " B"]
    start: Float[Tensor, " B"]
    end: Float[Tensor, " B"]

    def at(self, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The scale that holds at times t."""
        return torch.where((t >= self.start) & (t <= self.end), self.scale, torch.ones_like(self.scale))

    @classmethod
    def always(cls, scale: Float[Tensor, " B"]) -> "GuidanceInput":
        """Guidance at all times."""
        return cls(scale, torch.zeros_like(scale), torch.ones_like(scale))


Head = Callable[[Tensor, Tensor, Tensor, GuidanceInput, Tensor | None], Tensor]
"""u(z, t, r, guidance, class_labels)."""


def draw_scale(uniform: Float[Tensor, " B"], most: float, beta: float) -> Float[Tensor, " B"]:
    """Scales of density proportional to omega^-beta on [1, most].

    Args:
        uniform: uniform numbers in [0, 1).
        most: largest scale.
        beta: exponent; the larger, the more scales are small.
    """
    if beta == 1:
        return most**uniform
    return (1 + uniform * (most ** (1 - beta) - 1)) ** (1 / (1 - beta))


@dataclass(frozen=True)
class ImprovedTarget:
    """Direction and target of the velocity loss, and the classes of its images.

    Args:
        tangent: v_c, along which u is differentiated.
        velocity: v_g, the target.
        class_labels: classes with those that are dropped.
    """

    tangent: Float[Tensor, "B C H W"]
    velocity: Float[Tensor, "B C H W"]
    class_labels: Int[Tensor, " B"]


@torch.no_grad()
def improved_target(
    v_head: Head,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    v: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"],
    null_labels: Int[Tensor, " B"],
    guidance: GuidanceInput,
    dropped: Bool[Tensor, " B"],
) -> ImprovedTarget:
    """The direction of the derivative, the guided velocity and the classes that the network is given.

    Args:
        v_head: the model's instantaneous velocity.
        z: images at the times t.
        t: times.
        v: velocity n - x of the pairs of image and noise.
        class_labels: classes of the images.
        null_labels: class that stands for none, for each image.
        guidance: guidance drawn for each image.
        dropped: true for images that learn the null class; their target is v.
    """
    scale = guidance.at(t)
    none = GuidanceInput.always(torch.ones_like(scale))
    v_null = v_head(z, t, t, none, null_labels)
    v_class = v_head(z, t, t, GuidanceInput.always(scale), class_labels)
    v_guided = v + expand(1 - 1 / scale, z.ndim) * (v_class - v_null)
    v_guided = torch.where(expand(dropped, z.ndim), v, v_guided)
    return ImprovedTarget(v_class, v_guided, torch.where(dropped, null_labels, class_labels))


def improved_meanflow_loss(
    u_head: Head,
    v_head: Head,
    z: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    r: Float[Tensor, " B"],
    guidance: GuidanceInput,
    target: ImprovedTarget,
    *,
    p: float,
    c: float,
    ungraded: Head | None = None,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """The losses of both heads for each image.

    Args:
        u_head: average velocity.
        v_head: instantaneous velocity.
        z: images at the times t.
        t: times.
        r: ends, at most t.
        guidance: guidance drawn for each image.
        target: result of `improved_target`.
        p, c: exponent and constant of the adaptive weights.
        ungraded: the function `u_head`, for the derivative; None is `u_head`.
    """
    labels = target.class_labels
    derived = ungraded or u_head
    _, du_dt = total_derivative(
        lambda z, t, r, labels: derived(z, t, r, guidance, labels), z, t, r, target.tangent, labels
    )
    V = u_head(z, t, r, guidance, labels) + expand(t - r, z.ndim) * du_dt
    losses = []
    for found in (V, v_head(z, t, r, guidance, labels)):
        error = (found - target.velocity).square().flatten(1).sum(1)
        losses.append(adaptive(error, c, p) * error)
    return losses[0], losses[1]
