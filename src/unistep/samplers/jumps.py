"""Samplers of flow maps: jumps between noise levels, each exact for a map that is.

    x_r = (r/t) x_t + (1 - r/t) D(x_t, t, r)

Noise may be added between the jumps (Kim et al. 2023, "Consistency Trajectory Models", arXiv 2310.02279, algorithm 2):
a jump then goes below the next level r, to r sqrt(1 - gamma^2), and noise of level gamma r raises it again. gamma 0 is
deterministic, 1 the multistep sampler of consistency models.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import FlowMap
from unistep.samplers.consistency import check_sigmas
from unistep.samplers.noise_source import NoiseSource, draw
from unistep.samplers.ode import finish
from unistep.samplers.ode_step import level, move, slope


def jump(
    flow_map: FlowMap,
    x: Float[Tensor, "B C H W"],
    t: float,
    r: float,
    class_labels: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B C H W"]:
    """The images at level r of the trajectories through x at level t.

    Args:
        flow_map: flow map.
        x: images.
        t: their noise level, above 0.
        r: noise level of the result, at most `t`.
        class_labels: class of each image; None for an unconditional model.
    """
    start, end = level(t, x), level(r, x)
    x0 = flow_map(x, start, class_labels, end)
    return x0 if r == 0 else move(x, slope(x, start, x0), start, end)


def sample_jumps(
    flow_map: FlowMap,
    x_T: Float[Tensor, "B C H W"],
    sigmas: Sequence[float],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    gamma: float = 0.0,
    random: NoiseSource | None = None,
    sigma_max: float = 80.0,
    clip: bool = True,
) -> Float[Tensor, "B C H W"]:
    """Samples a flow map by one jump from every level to the next, and from the last to 0.

    Args:
        flow_map: flow map.
        x_T: *unit* Gaussian noise; multiplied by the first level here.
        sigmas: noise levels, strictly descending from sigma_max.
        class_labels: class of each image; None for an unconditional model.
        gamma: share of each level between that is fresh noise, in [0, 1].
        random: source of that noise, one draw for every level but the first; needed with a `gamma` above 0.
        sigma_max: noise level at which trajectories begin.
        clip: true to clamp the result to [-1, 1].

    Raises:
        UserError: the levels are not strictly descending from sigma_max.
        ValueError: noise is needed, and there is no source of it.
    """
    check_sigmas(sigmas, sigma_max)
    x = x_T * sigmas[0]
    for t, r in pairwise([*(sigma for sigma in sigmas if sigma > 0), 0.0]):
        x = jump(flow_map, x, t, r * math.sqrt(1 - gamma**2), class_labels)
        if gamma and r:
            if random is None:
                raise ValueError("noise between the jumps needs a source")
            x = x + gamma * r * draw(random, x)
    return finish(x, clip)
