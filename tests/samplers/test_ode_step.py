import json
from pathlib import Path

import pytest
import torch

from unistep.core import distance
from unistep.core.noise import pair_sigmas
from unistep.core.parameterization import ConsistencyScaling, EDMScaling, Preconditioned, expand
from unistep.core.weighting import WEIGHTINGS
from unistep.samplers.ode_step import clipped, dpm2_step, euler_step, heun_step, level

LOSSES = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
DISTANCES = {"l1": distance.l1, "l2": distance.l2, "l2-32": distance.l2_32}


@pytest.mark.parametrize("row", LOSSES, ids=lambda row: "-".join(map(str, row.values())))
def test_golden_losses_of_one_step(golden, toy, row):
    """Consistency distillation by one Heun step of the teacher, and consistency training by the same noise."""
    values, k = golden.tensors("losses.npz"), row["k"]
    x, noise = values["x0"], values["noise"]
    t, r = pair_sigmas(values[f"indices_{k}"], row["num_scales"])
    x_t = x + expand(t, 4) * noise
    if row["mode"] == "cd":
        x_r = heun_step(Preconditioned(toy("teacher"), EDMScaling()), x_t, t, r)
    else:
        x_r = x + expand(r, 4) * noise
    student = Preconditioned(toy("online"), ConsistencyScaling())
    target = Preconditioned(toy("target"), ConsistencyScaling())
    loss = DISTANCES[row["norm"]](student(x_t, t), target(x_r, r)) * WEIGHTINGS[row["weight"]](t, 0.5)
    torch.testing.assert_close(loss, values[f"loss_{k}"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("step", [euler_step, heun_step, dpm2_step])
def test_a_step_is_exact_for_a_constant_denoiser(step, generator):
    # All data at one point: the trajectories are straight lines to it.
    x0 = torch.rand(3, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(3, 3, 4, 4, generator=generator, dtype=torch.float64)
    t, r = torch.tensor([80.0, 2.0, 0.1]).double(), torch.tensor([1.0, 1.5, 0.002]).double()
    x_r = step(lambda x, sigma, labels: x0, x0 + expand(t, 4) * noise, t, r)
    torch.testing.assert_close(x_r, x0 + expand(r, 4) * noise)


@pytest.mark.parametrize("step", [euler_step, dpm2_step])
def test_steps_to_level_0_are_finite(step, toy, generator):
    x = torch.randn(2, 3, 4, 4, generator=generator)
    denoiser = Preconditioned(toy("online"), EDMScaling())
    assert step(denoiser, x, torch.full((2,), 0.002), torch.zeros(2)).isfinite().all()


@pytest.mark.parametrize("step", [euler_step, heun_step, dpm2_step])
def test_class_labels_reach_every_evaluation(step):
    labels, seen = torch.tensor([4, 2]), []

    def denoiser(x, sigma, class_labels):
        seen.append(class_labels)
        return x

    step(denoiser, torch.ones(2, 1, 1, 1), torch.ones(2), torch.full((2,), 0.5), labels)
    assert seen and all(label is labels for label in seen)


def test_levels_are_at_least_fp32():
    assert level(0.002, torch.zeros(2, 1, 1, 1, dtype=torch.float16)).dtype == torch.float32
    assert level(0.002, torch.zeros(2, 1, 1, 1, dtype=torch.float64)).dtype == torch.float64
    assert level(0.002, torch.zeros(5, 1, 1, 1)).shape == (5,)


def test_clipped():
    def double(x, sigma, class_labels=None):
        return 2 * x

    x = torch.tensor([-0.8, 0.2, 0.8]).reshape(1, 1, 1, 3)
    assert clipped(double, False) is double
    torch.testing.assert_close(clipped(double, True)(x, torch.ones(1)).flatten(), torch.tensor([-1, 0.4, 1]))
