"""The tangent of a consistency function along a trajectory, by one forward-mode derivative of its network.

Notation and sources are those of `continuous.py`.

dF^-/dt is one forward-mode derivative. d ln(sigma)/dt = 1 / (sin(t) cos(t)), so that cos(t) sin(t) dF^-/dt, which is
all that is needed, is the derivative in the direction

    cos(t) sin(t) dx_t/dt / sigma_d   of the network's input,   dc_noise/d ln(sigma)   of its c_noise

without a division. The latter is 1/4 for the noise embedding "edm" and 250 for "adm": the first is the one to train
with. The second is the same function of sigma, but its sinusoids turn 1000 times as fast, and the derivative is that
much larger and noisier.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unistep.core import trigflow
from unistep.core.parameterization import EDMScaling, Preconditioned, expand
from unistep.objectives.derivative import differentiable, jvp
from unistep.objectives.protocol import Student


@torch.no_grad()
def tangent(
    student: Student,
    x_sigma: Float[Tensor, "B C H W"],
    sigma: Float[Tensor, " B"],
    dx_dt: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"] | None = None,
    *,
    warmup: float = 1.0,
    sigma_data: float = 0.5,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B C H W"]]:
    """F^- and g = cos(t) df^-/dt at x_t = cos(t) x_sigma moving with velocity `dx_dt`.

    Args:
        student: a `Preconditioned` network with EDM's scaling, or one wrapped for several processes.
        x_sigma: noisy images.
        sigma: their noise levels, above 0.
        dx_dt: velocity of x_t.
        class_labels: classes of the images; None for a network without classes.
        warmup: factor r of the part with dF^-/dt, between 0 and 1.
        sigma_data: standard deviation of the data.
        generator: source of the dropout masks.

    Returns:
        F^- and g, both without gradient.

    Raises:
        ValueError: the student is no such network.
    """
    network, scaling = _network_of(student, sigma_data)
    sin, cos = (expand(v, x_sigma.ndim) for v in trigflow.sin_cos(sigma, sigma_data))
    x_t = cos * x_sigma
    c_noise, dc_noise = jvp(lambda s: scaling.c_noise(s.exp()), (sigma.log(),), (torch.ones_like(sigma),))
    with differentiable(x_sigma.device.type):
        F_edm, dF_edm = jvp(
            lambda x, c: network(x, c, class_labels, generator=generator),
            (x_t / sigma_data, c_noise),
            (cos * sin * dx_dt / sigma_data, dc_noise),
        )
    F, dF = -F_edm.to(x_t.dtype), -dF_edm.to(x_t.dtype)
    g = -(cos**2) * (sigma_data * F - dx_dt) - warmup * (cos * sin * x_t + sigma_data * dF)
    return F, g


def _network_of(student: Student, sigma_data: float) -> tuple[nn.Module, EDMScaling]:
    module = student.module if isinstance(student, DistributedDataParallel) else student
    if not isinstance(module, Preconditioned) or not isinstance(module.scaling, EDMScaling):
        raise ValueError("continuous-time consistency needs a student with EDM's scaling (sigma_min 0)")
    if module.scaling.sigma_data != sigma_data:
        raise ValueError(f"sigma_data of the student, {module.scaling.sigma_data}, is not the objective's {sigma_data}")
    return module.network, module.scaling
