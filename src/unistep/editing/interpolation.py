"""Interpolation in noise space: spherical, and walks through several points.

Song et al. 2023, "Consistency Models", appendix D, interpolate the noise that two images come from, with the angle psi
between the two,

    z = sin((1 - t) psi) / sin(psi) z_1 + sin(t psi) / sin(psi) z_2,   psi = arccos(z_1 . z_2 / (|z_1| |z_2|))

for Gaussian noise of n numbers lies close to the sphere of radius sqrt(n): the straight line between two such points
leaves the sphere, by a factor 0.7 half-way, and models are not trained on noise so weak. Norms of two Gaussian samples
differ a little; here the norm goes from one to the other evenly, and the angle as above. Where they are equal this is
the formula above.

The noise of an image is found by the ODE, see `encode`; or it is the image with noise of some level, see `noised`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from unistep.errors import UserError


def slerp(a: Float[Tensor, "B C H W"], b: Float[Tensor, "B C H W"], t: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Interpolates every pair from a (t = 0) to b (t = 1), both ends to the last bit.

    Args:
        a, b: noise of one level.
        t: share of the way, usually in [0, 1]; beyond, the great circle goes on.

    Raises:
        UserError: a pair points in opposite directions, between which no way is the shortest.
    """
    first, second, t = a.double().flatten(1), b.double().flatten(1), t.double()
    norm_a, norm_b = first.norm(dim=1), second.norm(dim=1)
    norm = norm_a * (1 - t) + norm_b * t
    # arccos loses small angles to rounding; this does not (Kahan 2006, "How futile are mindless assessments of
    # roundoff in floating-point computation?", section 12). Of a zero vector any direction will do.
    unit_a = first / norm_a.clamp_min(1e-300)[:, None]
    unit_b = second / norm_b.clamp_min(1e-300)[:, None]
    psi = 2 * torch.atan2((unit_a - unit_b).norm(dim=1), (unit_a + unit_b).norm(dim=1))
    sine = psi.sin()
    near = psi < 1e-6
    if bool(((sine < 1e-6) & ~near).any()):
        raise UserError("two noises to interpolate are opposite to each other: take another seed for one of them")
    weight_a = torch.where(near, 1 - t, ((1 - t) * psi).sin() / sine) * (norm / norm_a.clamp_min(1e-300))
    weight_b = torch.where(near, t, (t * psi).sin() / sine) * (norm / norm_b.clamp_min(1e-300))
    return (weight_a[:, None] * first + weight_b[:, None] * second).to(a).view_as(a)


def walk(points: Float[Tensor, "K C H W"], frames: int, *, closed: bool = False) -> Float[Tensor, "N C H W"]:
    """Returns a path through points of noise space on arcs of great circles, one x_T a frame.

    Args:
        points: noise of one level, at least two points.
        frames: number of frames from a point to the next, the first point counted and the next not.
        closed: whether the path goes on from the last point to the first, so that the frames can be shown in a loop.

    Returns:
        frames * K points where closed, else frames * (K - 1) + 1; every `frames`-th is one of `points`.

    Raises:
        UserError: there are fewer than two points or than one frame, or two points in a row are opposite.
    """
    if len(points) < 2 or frames < 1:
        raise UserError(f"a walk has at least 2 points and 1 frame between them, not {len(points)} and {frames}")
    begin, end = (points, points.roll(-1, 0)) if closed else (points[:-1], points[1:])
    t = torch.arange(frames, device=points.device, dtype=torch.float64).repeat(len(begin)) / frames
    path = slerp(begin.repeat_interleave(frames, dim=0), end.repeat_interleave(frames, dim=0), t)
    return path if closed else torch.cat([path, points[-1:]])
