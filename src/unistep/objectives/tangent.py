"""The tangent of a consistency function along a trajectory, by one forward-mode derivative of its network.

Notation and sources are those of `continuous.py`.

dF^-/dt is one forward-mode derivative. d ln(sigma)/dt = 1 / (sin(t) cos(t)), so that cos(t) sin(t) dF^-/dt, which is
all that is needed, is the derivative in the direction

    cos(t) sin(t) dx_t/dt / sigma_d   of the network's input,   dc_noise/d ln(sigma)   of its c_noise

without a division. The latter is 1/4 for the noise embedding "edm" and 250 for "adm": the first is the one to train
with. The second is the same function of sigma, but its sinusoids turn 1000 times as fast, and the derivative is that
much larger and noisier.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from unistep.core import trigflow
from unistep.core.parameterization import EDMScaling, Preconditioned, expand
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
    c_noise, dc_noise = _jvp(lambda s: scaling.c_noise(s.exp()), (sigma.log(),), (torch.ones_like(sigma),))
    # Weights that autocast casts here have no gradient; it must not keep them for the pass that wants one.
    device = x_sigma.device.type
    uncached = torch.autocast(device, enabled=torch.is_autocast_enabled(device), cache_enabled=False)
    # Of the kernels of attention only this one has a forward-mode derivative.
    with uncached, sdpa_kernel(SDPBackend.MATH), _DifferentiableNorms():
        F_edm, dF_edm = _jvp(
            lambda x, c: network(x, c, class_labels, generator=generator),
            (x_t / sigma_data, c_noise),
            (cos * sin * dx_dt / sigma_data, dc_noise),
        )
    F, dF = -F_edm.to(x_t.dtype), -dF_edm.to(x_t.dtype)
    g = -(cos**2) * (sigma_data * F - dx_dt) - warmup * (cos * sin * x_t + sigma_data * dF)
    return F, g


class _DifferentiableNorms(TorchFunctionMode):
    """GroupNorm of contiguous images in the dtype of the weights, where its forward-mode derivative is right.

    With other strides it has none, and under autocast on a CPU the derivative has another dtype than the value.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is functional.group_norm:
            func = _group_norm
        return func(*args, **(kwargs or {}))


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    if weight is not None:
        input = input.to(weight.dtype)
    return functional.group_norm(input.contiguous(), num_groups, weight, bias, eps)


def _jvp(f: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    value, derivative, *_ = torch.func.jvp(f, primals, tangents)
    return value, derivative


def _network_of(student: Student, sigma_data: float) -> tuple[nn.Module, EDMScaling]:
    module = student.module if isinstance(student, DistributedDataParallel) else student
    if not isinstance(module, Preconditioned) or not isinstance(module.scaling, EDMScaling):
        raise ValueError("continuous-time consistency needs a student with EDM's scaling (sigma_min 0)")
    if module.scaling.sigma_data != sigma_data:
        raise ValueError(f"sigma_data of the student, {module.scaling.sigma_data}, is not the objective's {sigma_data}")
    return module.network, module.scaling
