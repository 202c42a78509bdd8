"""Every sampler against the published reference code."""

import json
from pathlib import Path

import pytest
import torch

from unistep.core.parameterization import ConsistencyScaling, EDMScaling, Preconditioned
from unistep.samplers.ancestral import ancestral
from unistep.samplers.consistency import sample_multistep, sample_onestep, sigmas_from_indices
from unistep.samplers.dpm2 import dpm2
from unistep.samplers.euler import euler
from unistep.samplers.heun import heun
from unistep.samplers.ode import Churn
from unistep.samplers.progressive import progressive

ROWS = json.loads((Path(__file__).parents[1] / "golden" / "samplers.json").read_text())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['i']}-{row['sampler']}")
def test_golden_samplers(golden, toy, row):
    values, steps = golden.tensors("samplers.npz"), row["steps"]
    x_T = values[f"x_T_{row['i']}"]
    recorded = iter(values[f"noises_{row['i']}"])

    def noise(x):
        return next(recorded)

    scaling = {"edm": EDMScaling(), "consistency": ConsistencyScaling()}[row["parameterization"]]
    denoiser = Preconditioned(toy("online"), scaling)
    churn = Churn(noise, row["s_churn"], row["s_tmin"], row["s_tmax"], row["s_noise"]) if "s_churn" in row else None
    match row["sampler"]:
        case "heun":
            out = heun(denoiser, x_T, steps, churn=churn)
        case "euler":
            out = euler(denoiser, x_T, steps)
        case "dpm":
            out = dpm2(denoiser, x_T, steps, churn=churn)
        case "ancestral":
            out = ancestral(denoiser, x_T, steps, noise=noise)
        case "progdist":
            out = progressive(denoiser, x_T, steps)
        case "onestep":
            out = sample_onestep(denoiser, x_T * 80.0)
        case "multistep":
            out = sample_multistep(denoiser, x_T, sigmas_from_indices(row["ts"], steps), random=noise)
    # Relative to the images' range [-1, 1]: pixels near 0 are differences of larger numbers.
    torch.testing.assert_close(out, values[f"out_{row['i']}"], rtol=1e-5, atol=1e-5)
    assert float((out - values[f"out_{row['i']}"]).norm() / out.norm()) < 2e-6


def test_the_golden_rows_cover_every_sampler():
    assert {row["sampler"] for row in ROWS} == {
        "heun", "euler", "dpm", "ancestral", "progdist", "onestep", "multistep",
    }  # fmt: skip
