"""The losses of flow maps and their gradients are those of the methods' published code.

A gradient shows where gradients are stopped, which a loss cannot. Arrays that lose digits by cancellation in float32
are listed in each .json, with the error of a plain implementation.
"""

import math
from pathlib import Path

import pytest
import torch
from flow_golden import DTYPES, Case, FlowToy, SigmaToy, cases

from unistep.core.curriculum import ect_r
from unistep.core.flow import mixed
from unistep.core.noise import LogNormal
from unistep.core.parameterization import EDMScaling, Preconditioned
from unistep.core.student_t import TruncatedStudentT
from unistep.core.weighting import adaptive
from unistep.objectives.consistency import ConsistencyObjective
from unistep.objectives.facm import anchor_loss, anchored_loss
from unistep.objectives.improved_meanflow import GuidanceInput, draw_scale, improved_meanflow_loss, improved_target
from unistep.objectives.meanflow import meanflow_loss, optimal_gradient_loss, u_target
from unistep.objectives.methods import METHODS
from unistep.objectives.midtraining import MidTrainingConfig, MidTrainingObjective
from unistep.objectives.soflow import (
    EULER,
    Coefficients,
    gap_share,
    guidance_decay,
    middle_time,
    quotient_loss,
    velocity_loss,
)
from unistep.objectives.truncated import TruncatedConfig, TruncatedObjective
from unistep.objectives.velocity import self_guided, total_derivative
from unistep.samplers.dpmpp import log_levels, trajectory

GOLDEN = Path(__file__).parents[1] / "golden"
ONLINE = [0.3, 0.2, 0.4, 0.25, 0.1]

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])


def dropped_first(labels, count, null):
    return torch.where(torch.arange(len(labels)) < count, null, labels)


# ------------------------------------------------------------------------------------------------------ MeanFlow


@pytest.mark.parametrize("name", cases(GOLDEN, "meanflow"))
def test_meanflow(name, dtype, golden):
    case = Case(golden, "meanflow", name, dtype)
    spec, toy = case.spec, FlowToy(ONLINE, dtype)
    x, noise, t, r, labels = (case[key] for key in ("x", "noise", "t", "r", "labels"))
    z, v = mixed(x, noise, t), noise - x
    case.check("z_t", z)
    case.check("v", v)
    labels = labels if spec["conditional"] else None

    def u(z, t, r, y):
        return toy(z, t, t - r, y)

    v_target, label_in = v, labels
    if "omega" in spec:
        label_in = dropped_first(labels, spec["num_drop"], spec["null_label"])
        if spec.get("guidance", True):
            null = torch.full_like(labels, spec["null_label"])
            guided = self_guided(u, z, t, v, labels, null, spec["omega"], spec["kappa"])
            inside = (t >= spec["t_start"]) & (t <= spec["t_end"]) & (torch.arange(len(t)) >= spec["num_drop"])
            v_target = torch.where(inside.view(-1, 1, 1, 1), guided, v)
        if spec.get("own_draws"):
            assert torch.equal(label_in, case["label_in"])
    case.check("v_target", v_target)
    value, derivative = total_derivative(u, z, t, r, v_target, label_in)
    case.check("u", value)
    case.check("du_dt", derivative)
    numbers = {"p": spec["p"], "c": spec["c"]}
    if spec["loss"] == "l2":
        target = u_target(u, z, t, r, v_target, label_in)
        squared = (value - target).square().flatten(1).sum(1)
        case.check("u_target", target)
        case.check("sq_err", squared)
        case.check("weight", adaptive(squared, spec["c"], spec["p"]))
        losses = meanflow_loss(u, z, t, r, v_target, label_in, **numbers)
    else:
        losses = optimal_gradient_loss(u, z, t, r, v_target, label_in, **numbers)
    case.check("per_sample_loss", losses)
    case.check("loss", losses.mean())
    case.check_gradient(losses.mean(), toy)


# ---------------------------------------------------------------------------------------------- improved MeanFlow


class Head(torch.nn.Module):
    """The toy of a head, whose guidance is an input: p = (a, b, c, d, g, k, m)."""

    def __init__(self, p, dtype):
        super().__init__()
        self.p = torch.nn.Parameter(torch.tensor(p, dtype=dtype))

    def forward(self, z, t, r, guidance, y):
        *_, k, m = self.p
        plain = FlowToy.forward(_First(self.p), z, t, t - r, y)
        strength = k * (guidance.scale / 4).tanh() + m * (guidance.end - guidance.start)
        return plain + strength.view(-1, 1, 1, 1) * z


class _First:
    def __init__(self, p):
        self.p = p[:5]


@pytest.mark.parametrize("name", cases(GOLDEN, "imf"))
def test_improved_meanflow(name, dtype, golden):
    case = Case(golden, "imf", name, dtype)
    spec = case.spec
    heads = {key: Head(p, dtype) for key, p in case.about["toy_parameters"].items()}
    x, noise, t, r, labels = (case[key] for key in ("x", "noise", "t", "r", "labels"))
    z, v = mixed(x, noise, t), noise - x
    case.check("z_t", z)
    case.check("v_conditional_path", v)
    matching = case["fm_mask"].flatten().bool()
    assert torch.equal(t[matching], r[matching])
    guidance = GuidanceInput(case["omega"], case["t_min"], case["t_max"])
    case.check("omega_effective", guidance.at(t))
    null, dropped = torch.full_like(labels, spec["null_label"]), torch.arange(len(x)) < spec["num_drop"]
    target = improved_target(heads["v"], z, t, v, labels, null, guidance, dropped)
    assert torch.equal(target.class_labels, case["label_in"])
    case.check("v_cond", target.tangent)
    case.check("v_guided", target.velocity)

    of_u = total_derivative(
        lambda z, t, r, y: heads["u"](z, t, r, guidance, y), z, t, r, target.tangent, target.class_labels
    )
    case.check("u", of_u[0])
    case.check("du_dt", of_u[1])
    losses = improved_meanflow_loss(heads["u"], heads["v"], z, t, r, guidance, target, p=spec["p"], c=spec["c"])
    case.check("per_sample_u", losses[0])
    case.check("per_sample_v", losses[1])
    loss = (losses[0] + losses[1]).mean()
    case.check("loss", loss)
    case.check_gradient(loss, heads["u"], "grad_u")
    case.check_gradient(loss, heads["v"], "grad_v")


def test_scales_of_guidance(dtype, golden):
    values = golden.tensors("imf.npz")
    for beta in (1, 2):  # the reference computes them in float32
        found = draw_scale(values["law.uniform"].to(dtype), 8.0, float(beta))
        torch.testing.assert_close(found.double(), values[f"law.omega_beta{beta}"], rtol=1e-6, atol=0)


# --------------------------------------------------------------------------------------------------------- SoFlow

TRIG = Coefficients(lambda t, s: (math.pi / 2 * (s - t)).cos(), lambda t, s: (math.pi / 2 * (s - t)).sin())
SCHEDULES = {"Exponent": "exponential", "Linear": "linear", "Cosine": "cosine", "Const": "constant"}


@pytest.mark.parametrize("name", cases(GOLDEN, "soflow"))
def test_soflow(name, dtype, golden):
    case = Case(golden, "soflow", name, dtype)
    spec, toy = case.spec, FlowToy(ONLINE, dtype)
    coefficients, slope = (EULER, 1.0) if spec["coefficients"] == "Euler" else (TRIG, math.pi / 2)
    x, noise, t, s, drop = (case[key] for key in ("x", "noise", "t", "s", "drop_mask"))
    drop, v = drop.flatten().bool(), noise - x
    guided = spec["conditional"] and spec["cfg_scale"] > 1
    labels = null = label_in = None
    if spec["conditional"]:
        labels = case["labels"]
        null = torch.full_like(labels, spec["null_label"])
        label_in = torch.where(drop, null, labels)

    def own(z, t, y):
        return slope * toy(z, t, t, y)

    def target(z, t, mixed_in):
        if not guided:
            return v
        rise = (guidance_decay(t, spec["cfg_decay_time"]) * (spec["cfg_scale"] - 1)).view(-1, 1, 1, 1)
        v_g = v + rise * (v - own(z, t, null))
        v_g = spec["mix_ratio"] * v_g + (1 - spec["mix_ratio"]) * mixed_in
        return torch.where(drop.view(-1, 1, 1, 1), v, v_g)

    z = mixed(x, noise, t)
    share = gap_share(
        spec["step"] / spec["total_steps"], spec["gap_init"], spec["gap_end"], SCHEDULES[spec["gap_schedule"]]
    )
    middle = middle_time(t, s, share)
    case.check("c.x_t", z)
    case.check("c.l", middle)
    with torch.no_grad():
        v_target = target(z, t, own(z, t, labels) if guided else v)
    case.check("c.v_target", v_target)
    losses, surrogate = quotient_loss(
        toy, z, t, s, middle, v_target, label_in, p=spec["p"], eps=spec["eps"], coefficients=coefficients
    )
    case.check("c.surrogate_loss", surrogate.mean())
    case.check_gradient(surrogate.mean(), toy, "c.grad")
    case.check_gradient(losses.mean(), toy, "c.grad")
    assert bool((losses >= 0).all())

    t_v = case["t_velocity"]
    z_v = mixed(x, noise, t_v)
    found = own(z_v, t_v, label_in)
    case.check("v.v_pred", found)
    with torch.no_grad():
        v_target = target(z_v, t_v, found.detach())
    case.check("v.v_target", v_target)
    matching = velocity_loss(found, v_target, p=spec["p"], eps=spec["eps"], slope=slope).mean()
    case.check("v.loss", matching)
    case.check_gradient(matching, toy, "v.grad")
    total = spec["velocity_share"] * matching + (1 - spec["velocity_share"]) * surrogate.mean()
    case.check("total", total)
    case.check_gradient(total, toy, "total_grad")


def test_soflow_schedules(dtype, golden):
    values = golden.tensors("soflow.npz")
    kinds = ["constant", "linear", "cosine", "exponential"]
    for kind, first, last, step, total, middle in values["schedule.table"].tolist():
        share = gap_share(step / total, first, last, kinds[int(kind)])
        found = middle_time(torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype), share)
        assert float(found) == pytest.approx(middle, abs=1e-9 if dtype == torch.float64 else 1e-6)
    found = guidance_decay(values["decay.t"].to(dtype), 0.8)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found.double(), values["decay.value"], rtol=tolerance, atol=tolerance)


# ----------------------------------------------------------------------------------------------------------- FACM


@pytest.mark.parametrize("name", cases(GOLDEN, "facm"))
def test_facm(name, dtype, golden):
    """Its time runs the other way: F(x, t', s') is -u(x, 1 - t', 1 - s')."""
    case = Case(golden, "facm", name, dtype)
    spec, toy = case.spec, FlowToy(ONLINE, dtype)
    teacher = FlowToy(case.about["toy_parameters"]["teacher"], dtype)
    x, noise, labels, normal = (case[key] for key in ("x", "noise", "labels", "normal"))
    second = spec["second_time_input"]
    if spec["time_law"] == "default":
        t = 1 - (-spec["mean"] + spec["std"] * normal).exp().atan() * 2 / math.pi
    else:
        t = 1 - (-spec["mean"] + spec["std"] * normal).sigmoid()
    case.check("t", t)
    time = 1 - t
    z, v = mixed(x, noise, time), noise - x
    case.check("x_t", z)

    def u(model, z, time, end, y):
        return -model(z, 1 - time, 1 - end if second else None, y)

    with torch.no_grad():
        reference = teacher if spec["distill"] else toy
        outside = (t < spec["cfg_low"]) | (t > spec["cfg_high"])
        null = torch.where(outside, labels, spec["null_label"])
        own = u(reference, z, time, time, labels) if spec["distill"] else v
        free = u(reference, z, time, time, null)
        target = free + spec["cfg"] * (own - free) if spec["cfg"] > 1 else own
    case.check("v", -target)

    anchored_at = time if second else -time  # the published code's 2 - t, in place of a second time
    matching = u(toy, z, anchored_at, time, labels)
    case.check("F_fm", -matching)
    anchor = anchor_loss(matching, target)
    case.check("fm_per_sample", anchor)
    losses = anchored_loss(lambda z, t: u(toy, z, t, torch.zeros_like(t), labels), z, time, target, p=spec["p"])
    case.check("cm_per_sample", losses)
    case.check("cm_loss", losses.mean())
    loss = losses.mean() + anchor.mean()
    case.check("loss", loss)
    case.check_gradient(loss, toy)


# ------------------------------------------------------------------------------------------------------------ TCM


@pytest.mark.parametrize("name", cases(GOLDEN, "tcm"))
def test_truncated(name, dtype, golden):
    case = Case(golden, "tcm", name, dtype)
    spec = case.spec
    toys = {key: SigmaToy(p, dtype) for key, p in case.about["toy_parameters"].items()}
    names = {"default": "1/(t-r)", "sqrt": "1/sqrt(t-r)", "c_out_sq": "karras", "one": "uniform"}
    config = TruncatedConfig(
        transition=spec["transition"],
        ratio=spec["ratio"],
        boundary=spec["boundary_prob"],
        boundary_weight=spec["w_boundary"],
        distance="l2" if spec["squared_l2"] else "pseudo-huber",
        huber_c=spec["huber_c"],
        weighting=names[spec["weighting"]],
        smallest_r=spec["min_r"],
    )
    above, frozen = (Preconditioned(toys[key], EDMScaling()) for key in ("student", "stage1"))
    objective = TruncatedObjective(config, frozen)

    def student(x, sigma, labels=None, /, *, generator=None, augment_labels=None):
        """The stored levels are not all above the transition of case sql2, as those of a training are."""
        answers = [model(x, sigma, labels) for model in (above, frozen)]
        return torch.where((sigma >= spec["transition"]).view(-1, 1, 1, 1), *answers)

    x, noise, t = (case[key] for key in ("x", "noise", "t"))
    boundary = torch.zeros(len(x), dtype=torch.bool)
    boundary[case["perm"][: int(len(x) * spec["boundary_prob"])]] = True
    assert torch.equal(case.values[f"{name}.t"] == spec["transition"] + 1e-8, boundary)
    case.check("r", objective.lower(t))
    pairs = objective.pair_loss(student, x, None, t, noise)
    # The published squared distance is a sum over the pixels.
    pixels = x[0].numel() if spec["squared_l2"] else 1
    case.check("per_sample_loss", pixels * pairs)
    case.check("loss_consistency", pixels * pairs[~boundary].mean())
    case.check("loss_boundary", pixels * pairs[boundary].mean())
    loss = pixels * objective.loss_at(student, x, None, t, boundary, noise).mean()
    case.check("loss", loss)
    case.check_gradient(loss, toys["student"])


def test_levels_of_truncated_training(dtype, golden):
    values = golden.tensors("tcm.npz")
    found = TruncatedStudentT(1.0, 80.0).sample(values["sampler.u"].to(dtype)).double()
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, values["sampler.stage2_t"], rtol=tolerance, atol=0)


# ------------------------------------------------------------------------------------------------------------ CMT


@pytest.mark.parametrize("name", [name for name in cases(GOLDEN, "cmt") if name.startswith("nfe")])
def test_midtraining(name, dtype, golden):
    case = Case(golden, "cmt", name, dtype)
    toys = {key: SigmaToy(p, dtype) for key, p in case.about["toy_parameters"].items()}
    config = MidTrainingConfig(points=case.spec["nfe"], distance="l2" if case.spec["metric"] == "MSE" else "norm")
    student, teacher = (Preconditioned(toys[key], EDMScaling()) for key in ("student", "teacher"))
    x, noise = case["x"], case["noise"]
    sigmas = log_levels(config.points, config.end, config.sigma_max)
    case.check("sigmas", torch.tensor(sigmas[:-1], dtype=dtype))
    *points, end = trajectory(teacher, x + 80 * noise, sigmas)
    case.check("trajectory", torch.stack(points))
    case.check("target", end)
    losses = MidTrainingObjective(config, teacher=teacher).loss_at(student, x, None, noise)
    pixels = x[0].numel() if config.distance == "l2" else 1  # the published square is a sum
    expected = case.values[f"{name}.per_sample_loss"].mean(0)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(pixels * losses.double(), expected, rtol=tolerance, atol=0)
    case.check("loss", pixels * losses.mean())
    case.check_gradient(pixels * losses.mean(), toys["student"])


@pytest.mark.parametrize("name", [name for name in cases(GOLDEN, "cmt") if name.startswith("post")])
def test_tuning_after_midtraining(name, dtype, golden):
    case = Case(golden, "cmt", name, dtype)
    spec, toy = case.spec, SigmaToy(case.about["toy_parameters"]["student"], dtype)
    config = METHODS["ect"].config(
        q=spec["q"], stages=1, huber_c=spec["huber_c"], k=spec["k"], b=spec["b"], P_mean=spec["P_mean"]
    )
    x, noise = case["x"], case["noise"]
    t = LogNormal(spec["P_mean"], spec["P_std"]).sample(case["normal"])
    case.check("t", t)
    r = ect_r(t, 0, spec["q"], spec["k"], spec["b"])
    case.check("r", r)
    student = Preconditioned(toy, EDMScaling())
    losses = ConsistencyObjective(config, 1).loss_at(student, x, None, t, r, noise, None)
    case.check("per_sample_loss", losses)
    case.check("loss", losses.mean())
    case.check_gradient(losses.mean(), toy)
