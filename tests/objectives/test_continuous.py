"""The continuous-time objective: its tangent against finite differences, its gradient against the discrete one's."""

import dataclasses
import math
import os
from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, init_process_group
from torch.nn.parallel import DistributedDataParallel

from unistep.core import trigflow
from unistep.core.parameterization import ConsistencyScaling, EDMScaling, Preconditioned, expand
from unistep.core.random import ImageRandom, image_seed
from unistep.networks.adm import UNet
from unistep.networks.song import SongUNet, SongUNetConfig
from unistep.objectives.consistency import ConsistencyConfig, ConsistencyObjective
from unistep.objectives.continuous import ContinuousConfig, ContinuousObjective, tangent
from unistep.samplers.guidance import Guided

SIGMA_DATA = 0.5
SIGMA = torch.tensor([0.02, 0.3, 1.0, 20.0], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 1])
MU, S = 0.3, 0.7
PLAIN = ContinuousConfig(tangent="none", adaptive_weight=False, tangent_warmup=0)


class Small(nn.Module):
    """Smooth, nonlinear, with every input in every output; keeps the masks it would drop by and the SDPA it sees."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)

        def parameter(*shape):
            return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) / 3)

        self.first, self.second = parameter(12, channels * 16 + 1), parameter(channels * 16, 12)
        self.masks, self.flash = [], []

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        if generator is not None:
            self.masks.append(torch.rand(3, generator=generator))
        self.flash.append(torch.backends.cuda.flash_sdp_enabled())
        h = torch.cat([x.flatten(1), c_noise[:, None]], dim=1) @ self.first.T.to(x.dtype)
        return (h.tanh() @ self.second.T.to(x.dtype)).reshape(x.shape)


def exact_teacher(x_sigma, sigma, class_labels=None, /):
    return MU + expand(S**2 / (S**2 + sigma**2), 4) * (x_sigma - MU)


def student_of(network: nn.Module, embedding: str = "edm") -> Preconditioned:
    return Preconditioned(network, EDMScaling(SIGMA_DATA, embedding))


def objective_of(config: ContinuousConfig = PLAIN, teacher=exact_teacher, **fields) -> ContinuousObjective:
    return ContinuousObjective(dataclasses.replace(config, **fields), 100, SIGMA_DATA, teacher=teacher)


def relative(a, b):
    return float(((a - b).norm() / b.norm()).detach())


@pytest.fixture
def x(generator):
    return 0.5 * torch.randn(4, 1, 4, 4, generator=generator, dtype=torch.float64)


@pytest.fixture
def unit_noise(generator, x):
    return torch.randn(x.shape, generator=generator, dtype=torch.float64)


def noisy(x, unit_noise):
    return x + expand(SIGMA, 4) * unit_noise


# ------------------------------------------------------------------------------------------------- the tangent


def unet(lively, **fields):
    attending = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D",) * 2}
    return lively(sample_size=8, num_class_embeds=3, **(attending | fields))


def build_unet(lively):
    network = unet(lively, patch_size=1)
    return network if isinstance(network, UNet) else network.unet


def build_song(lively):
    config = SongUNetConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        num_class_embeds=3,
        model_channels=16,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        embedding_type="positional",
        encoder_type="residual",
        resample_filter=(1, 3, 3, 1),
    )
    network, noise = SongUNet(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=noise) * 0.15)
    return network.eval()


NETWORKS = {
    "small": lambda lively: Small(4),
    "unet": build_unet,
    "patched": unet,
    "song": build_song,
}


def trajectory(velocity, x, unit_noise):
    """x_t as a function of t through the noisy image: the pair's, or the exact teacher's."""
    if velocity == "data":
        return lambda t: expand(t.cos(), 4) * x + expand(t.sin(), 4) * SIGMA_DATA * unit_noise
    start = (noisy(x, unit_noise) - MU) / expand((S**2 + SIGMA**2).sqrt(), 4)

    def at(t):
        sigma = trigflow.sigma_of(t, SIGMA_DATA)
        return trigflow.rotated(MU + expand((S**2 + sigma**2).sqrt(), 4) * start, sigma, SIGMA_DATA)

    return at


@pytest.mark.parametrize("velocity", ["data", "teacher"])
@pytest.mark.parametrize("name", NETWORKS)
def test_tangent_is_the_derivative_of_f_along_the_trajectory(name, velocity, lively, generator):
    shape = (4, 4, 4, 4) if name == "small" else (4, 1, 8, 8)
    x, unit_noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    student = student_of(NETWORKS[name](lively)).double()
    x_sigma = noisy(x, unit_noise)
    dx_dt = objective_of(velocity=velocity).dx_dt(x, unit_noise, x_sigma, SIGMA, LABELS)
    F, g = tangent(student, x_sigma, SIGMA, dx_dt, LABELS, sigma_data=SIGMA_DATA)
    assert not F.requires_grad and not g.requires_grad

    at = trajectory(velocity, x, unit_noise)
    t = trigflow.time_of(SIGMA, SIGMA_DATA)
    step = t.sin() * t.cos() * 0.02  # the same part of ln(sigma) everywhere

    @torch.no_grad()
    def f(k):
        moved = t + k * step
        sigma = trigflow.sigma_of(moved, SIGMA_DATA)
        return student(trigflow.unrotated(at(moved), sigma, SIGMA_DATA), sigma, LABELS)

    # Central, of the fourth order: the embedding of the noise level is fp32, so that steps cannot be small.
    derivative = (8 * (f(1) - f(-1)) - (f(2) - f(-2))) / expand(12 * step, 4)
    expected = expand(t.cos(), 4) * derivative
    for i in range(len(x)):
        assert relative(g[i], expected[i]) < 1e-4, f"image {i}"
    # F^- is the network's output with TrigFlow's sign.
    x0 = trigflow.end_point(F, trigflow.rotated(x_sigma, SIGMA, SIGMA_DATA), t, SIGMA_DATA)
    torch.testing.assert_close(x0, f(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("embedding", ["adm", "edm"])
def test_derivative_of_the_noise_level(embedding, x, unit_noise):
    """A network that only sees c_noise: dF/d ln(sigma) is that of the embedding."""

    class Level(nn.Module):
        def forward(self, x, c_noise, class_labels=None, *, generator=None):
            return 0 * x + expand(c_noise, 4)

    x_sigma = noisy(x, unit_noise)
    x_t = trigflow.rotated(x_sigma, SIGMA, SIGMA_DATA)
    sin, cos = (expand(v, 4) for v in trigflow.sin_cos(SIGMA, SIGMA_DATA))
    F, g = tangent(student_of(Level(), embedding), x_sigma, SIGMA, torch.zeros_like(x), sigma_data=SIGMA_DATA)
    dF = (-(cos**2) * SIGMA_DATA * F - g - cos * sin * x_t) / SIGMA_DATA
    torch.testing.assert_close(dF, torch.full_like(x, -250.0 if embedding == "adm" else -0.25))


def test_warmup_keeps_the_derivative_out(x, unit_noise):
    x_sigma, dx_dt = noisy(x, unit_noise), torch.randn_like(x)
    student = student_of(Small())
    F, g = tangent(student, x_sigma, SIGMA, dx_dt, warmup=0.0, sigma_data=SIGMA_DATA)
    cos = expand(trigflow.sin_cos(SIGMA, SIGMA_DATA)[1], 4)
    torch.testing.assert_close(g, -(cos**2) * (SIGMA_DATA * F - dx_dt))
    half, full = (tangent(student, x_sigma, SIGMA, dx_dt, warmup=r, sigma_data=SIGMA_DATA)[1] for r in (0.5, 1.0))
    torch.testing.assert_close(half - g, (full - g) / 2)
    config = ContinuousConfig(tangent_warmup=4)
    assert [config.warmup(step) for step in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert objective_of(config).scalars(1) == {"tangent_warmup": 0.25}


def test_exact_consistency_function_has_no_tangent(x, unit_noise):
    """With the exact teacher of Gaussian data, the exact consistency function does not change along a trajectory."""
    scaling = EDMScaling(SIGMA_DATA, "edm")

    class Exact(nn.Module):
        def forward(self, x, c_noise, class_labels=None, *, generator=None):
            sigma = (4 * c_noise).exp()
            c_skip, c_out, c_in = (expand(c(sigma), 4) for c in (scaling.c_skip, scaling.c_out, scaling.c_in))
            x_sigma = x / c_in
            f = MU + expand(S / (S**2 + sigma**2).sqrt(), 4) * (x_sigma - MU)
            return (f - c_skip * x_sigma) / c_out

    student = Preconditioned(Exact(), scaling)
    x_sigma = noisy(x, unit_noise)
    dx_dt = objective_of(velocity="teacher").dx_dt(x, unit_noise, x_sigma, SIGMA, None)
    assert float(dx_dt.abs().max()) > 0.1
    _, g = tangent(student, x_sigma, SIGMA, dx_dt, sigma_data=SIGMA_DATA)
    assert float(g.abs().max()) < 1e-12
    # The pair's own velocity is right only on average: one image moves f.
    _, g = tangent(student, x_sigma, SIGMA, objective_of().dx_dt(x, unit_noise, x_sigma, SIGMA, None))
    assert float(g.abs().max()) > 0.1


# ---------------------------------------------------------------------------------------------- the gradient


def gradient(student, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), list(student.parameters()))])


@pytest.mark.parametrize(("velocity", "step"), [("data", "same-noise"), ("teacher", "euler")])
def test_is_the_limit_of_the_discrete_objective(velocity, step, x, unit_noise):
    """The gradient of ||f(x_t, t) - f^-(x_r, r)||^2 / (sigma (t - r)) tends to it, the error falling as t - r."""
    student = student_of(Small())
    objective = objective_of(velocity=velocity)
    expected = gradient(student, objective.loss_at(student, x, None, SIGMA, unit_noise, 0))
    config = ConsistencyConfig(step=step, distance="l2", sigma_min=0.0)
    discrete = ConsistencyObjective(config, 100, SIGMA_DATA, teacher=exact_teacher)

    errors = []
    for part in (1e-1, 1e-2, 1e-3):
        r = SIGMA * (1 - part)
        dt = trigflow.time_of(SIGMA, SIGMA_DATA) - trigflow.time_of(r, SIGMA_DATA)
        losses = discrete.loss_at(student, x, None, SIGMA, r, unit_noise) / (SIGMA * dt)
        errors.append(relative(gradient(student, losses), expected))
    assert errors[-1] < 1e-3, errors
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.25), errors
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.05), errors


def test_value_is_the_mean_square_of_the_bounded_tangent(x, unit_noise):
    student = student_of(Small())
    x_sigma = noisy(x, unit_noise)
    dx_dt = objective_of().dx_dt(x, unit_noise, x_sigma, SIGMA, None)
    _, g = tangent(student, x_sigma, SIGMA, dx_dt, sigma_data=SIGMA_DATA)
    rms = g.square().mean((1, 2, 3), keepdim=True).sqrt()
    assert float(g.abs().max()) > 1  # or clipping would change nothing
    for name, bounded in (("none", g), ("clip", g.clamp(-1, 1)), ("normalize", g / (rms + 0.2))):
        losses = objective_of(tangent=name, tangent_c=0.2).loss_at(student, x, None, SIGMA, unit_noise, 0)
        torch.testing.assert_close(losses, bounded.square().mean((1, 2, 3)))


def test_smallest_levels_in_single_precision(x, unit_noise):
    """c_out is 1e-6 there; neither value nor gradient is lost in rounding errors over it."""
    sigma = torch.full((4,), 1e-6)
    results = []
    for dtype in (torch.float32, torch.float64):
        student = student_of(Small())
        losses = objective_of().loss_at(student, x.to(dtype), None, sigma.to(dtype), unit_noise.to(dtype), 0)
        results.append((losses.double(), gradient(student, losses)))
    assert relative(results[0][0], results[1][0]) < 1e-5
    assert relative(results[0][1], results[1][1]) < 1e-5


def test_draws_its_levels_from_the_log_normal(x):
    x = x.float()
    config = dataclasses.replace(PLAIN, P_mean=0.5, P_std=2.0, sigma_max=3.0)
    objective, student = objective_of(config), student_of(Small())
    seeds = [image_seed(1, i) for i in range(len(x))]
    losses = objective.loss(student, x, None, 0, ImageRandom(seeds), 7)
    random = ImageRandom(seeds)
    sigma = (0.5 + 2 * random.randn()).exp().clamp(max=3.0)
    assert bool((sigma == 3.0).any()) and bool((sigma < 3.0).any())
    torch.testing.assert_close(losses, objective.loss_at(student, x, None, sigma, random.randn(1, 4, 4), 0, 7))


# ------------------------------------------------------------------------------------------------- guidance


def by_class(x_sigma, sigma, class_labels=None, /):
    return exact_teacher(x_sigma, sigma) + 0.1 * expand(class_labels * sigma, 4)


@pytest.mark.parametrize("velocity", ["data", "teacher"])
def test_guidance_moves_the_clean_image(velocity, x, unit_noise):
    guided = Guided(by_class, 3.0, null_label=3)
    x_sigma = noisy(x, unit_noise)
    objective = objective_of(teacher=guided, velocity=velocity, guidance=3.0)
    dx_dt = objective.dx_dt(x, unit_noise, x_sigma, SIGMA, LABELS)
    moved = x + guided.correction(x_sigma, SIGMA, LABELS) if velocity == "data" else guided(x_sigma, SIGMA, LABELS)
    sin, cos = (expand(v, 4) for v in trigflow.sin_cos(SIGMA, SIGMA_DATA))
    torch.testing.assert_close(dx_dt, (cos**2 * x_sigma - moved) / sin)


# --------------------------------------------------------------------------------------- precision, processes


def test_bf16_autocast(lively, generator):
    network = unet(lively).train().requires_grad_(True)
    student = student_of(network)
    x, unit_noise = (torch.randn(4, 1, 8, 8, generator=generator) for _ in range(2))
    sigma = SIGMA.float()
    x_sigma = x + expand(sigma, 4) * unit_noise
    dx_dt = objective_of().dx_dt(x, unit_noise, x_sigma, sigma, LABELS)
    _, exact = tangent(student, x_sigma, sigma, dx_dt, LABELS, sigma_data=SIGMA_DATA)
    with torch.autocast("cpu", torch.bfloat16):
        F, g = tangent(student, x_sigma, sigma, dx_dt, LABELS, sigma_data=SIGMA_DATA)
    assert F.dtype == g.dtype == torch.float32
    assert relative(g, exact) < 0.03

    objective = objective_of(adaptive_weight=True)
    expected = gradient(student, objective.loss_at(student, x, LABELS, sigma, unit_noise, 0))
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective.loss_at(student, x, LABELS, sigma, unit_noise, 0)
    assert relative(gradient(student, losses), expected) < 0.05


def test_only_the_derivative_is_kept_from_fused_attention(x, unit_noise):
    network = Small()
    objective_of().loss_at(student_of(network), x, None, SIGMA, unit_noise, 0)
    assert network.flash == [False, True]
    assert torch.backends.cuda.flash_sdp_enabled()


def test_both_passes_drop_the_same_units(x, unit_noise):
    network = Small()
    objective_of().loss_at(student_of(network), x, None, SIGMA, unit_noise, 0, dropout_seed=4)
    objective_of().loss_at(student_of(network), x, None, SIGMA, unit_noise, 0, dropout_seed=5)
    first, again, other, _ = network.masks
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_dropout_inside_the_derivative(lively, generator):
    """The tangent is that of the network with these masks: F^- is what the student gives with them."""
    network = unet(lively, dropout=0.5).train()
    student = student_of(network)
    x, unit_noise = (torch.randn(4, 1, 8, 8, generator=generator) for _ in range(2))
    sigma = SIGMA.float()
    x_sigma = x + expand(sigma, 4) * unit_noise

    def F(seed):
        masks = torch.Generator().manual_seed(seed)
        return tangent(student, x_sigma, sigma, x, LABELS, sigma_data=SIGMA_DATA, generator=masks)[0]

    x_t = trigflow.rotated(x_sigma, sigma, SIGMA_DATA)
    x0 = student(x_sigma, sigma, LABELS, generator=torch.Generator().manual_seed(0))
    t = trigflow.time_of(sigma, SIGMA_DATA)
    torch.testing.assert_close(trigflow.end_point(F(0), x_t, t, SIGMA_DATA), x0, rtol=1e-4, atol=1e-4)
    assert relative(F(1), F(0)) > 0.1


def test_student_wrapped_for_several_processes(x, unit_noise, tmp_path):
    student = student_of(Small())
    losses = objective_of().loss_at(student, x, None, SIGMA, unit_noise, 0)
    expected = gradient(student, losses)
    # In a process of its own that ends at once: a thread of gloo may wait for the interpreter while its group is freed.
    if not (child := os.fork()):
        with suppress(BaseException):
            init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
            again = objective_of().loss_at(DistributedDataParallel(student), x, None, SIGMA, unit_noise, 0)
            again.sum().backward()
            grads = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
            torch.save([again.detach(), grads], tmp_path / "wrapped.pt")
        os._exit(0)
    os.waitpid(child, 0)
    again, grads = torch.load(tmp_path / "wrapped.pt")
    torch.testing.assert_close(again, losses.detach())
    torch.testing.assert_close(grads, expected)


# ------------------------------------------------------------------------------------------- learned weight


def test_weight_is_one_at_first_and_belongs_to_the_state(x, unit_noise):
    objective, student = objective_of(adaptive_weight=True), student_of(Small())
    plain = objective_of().loss_at(student, x, None, SIGMA, unit_noise, 0)
    torch.testing.assert_close(objective.loss_at(student, x, None, SIGMA, unit_noise, 0), plain)

    (weight,) = objective.parameters()
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    w = objective.log_weight(SIGMA)
    torch.testing.assert_close(objective.loss_at(student, x, None, SIGMA, unit_noise, 0), w.exp() * plain - w)
    resumed = objective_of(adaptive_weight=True)
    resumed.load_state_dict({key: value.clone() for key, value in objective.state_dict().items()})
    assert torch.equal(resumed.log_weight(SIGMA), w)

    fixed = objective_of()
    assert fixed.parameters() == [] and fixed.state_dict() == {}
    fixed.load_state_dict({})
    with pytest.raises(ValueError, match="adaptive_weight is off"):
        fixed.log_weight(SIGMA)


def test_weight_learns_the_inverse_of_the_loss():
    """Where the loss at t is 0.3 sigma^2 + 0.05, w tends to minus its logarithm."""
    objective = objective_of(adaptive_weight=True, P_mean=-1.0, P_std=1.0)
    (weight,) = objective.parameters()
    optimizer = torch.optim.Adam([weight], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        sigma = (-1 + torch.randn(256, generator=generator)).exp()
        w = objective.log_weight(sigma)
        (w.exp() * (0.3 * sigma**2 + 0.05) - w).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    sigma = torch.tensor([-2.0, -1.5, -1.0, -0.5, 0.0]).exp()
    torch.testing.assert_close(objective.log_weight(sigma), -(0.3 * sigma**2 + 0.05).log(), rtol=0, atol=0.1)


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("P_mean", math.inf),
        ("P_std", 0.0),
        ("P_std", math.nan),
        ("tangent_c", 0.0),
        ("tangent_warmup", -1),
        ("guidance", math.nan),
        ("sigma_min", 0.002),
        ("sigma_max", 0.0),
        ("sigma_max", math.inf),
        ("rho", -7.0),
    ],
)
def test_refused_values(field, value):
    with pytest.raises(ValueError, match=f"`{field}` .*{value}") as error:
        ContinuousConfig(**{field: value})
    assert "\n" not in str(error.value)


def test_needs_teacher():
    assert not ContinuousConfig().needs_teacher
    assert ContinuousConfig(velocity="teacher").needs_teacher and ContinuousConfig(guidance=2.0).needs_teacher
    with pytest.raises(ValueError, match="velocity 'teacher' needs a teacher"):
        objective_of(velocity="teacher", teacher=None)
    with pytest.raises(ValueError, match="guidance 2.0 needs a guided teacher"):
        objective_of(guidance=2.0)


@pytest.mark.parametrize(
    "student",
    [Small(), Preconditioned(Small(), ConsistencyScaling()), Preconditioned(Small(), EDMScaling(0.6, "edm"))],
    ids=["no scaling", "consistency scaling", "other sigma_data"],
)
def test_refused_students(student, x, unit_noise):
    with pytest.raises(ValueError, match="EDM's scaling|sigma_data of the student, 0.6"):
        tangent(student, noisy(x, unit_noise), SIGMA, x, sigma_data=SIGMA_DATA)
