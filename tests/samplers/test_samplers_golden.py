"""Every sampler against the published reference code."""

import json
from pathlib import Path

import pytest
import torch

from unistep.core.parameterization import ConsistencyScaling, EDMScaling, Preconditioned
from unistep.samplers import ode
from unistep.samplers.consistency import sample_multistep, sample_onestep, sigmas_from_indices

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
    churn = {key: row[key] for key in ("s_churn", "s_tmin", "s_tmax", "s_noise") if key in row}
    match row["sampler"]:
        case "heun":
            out = ode.heun(denoiser, x_T, steps, noise=noise, **churn)
        case "euler":
            out = ode.euler(denoiser, x_T, steps)
        case "dpm":
            out = ode.dpm2(denoiser, x_T, steps, noise=noise, **churn)
        case "ancestral":
            out = ode.ancestral(denoiser, x_T, steps, noise=noise)
        case "progdist":
            out = ode.progressive(denoiser, x_T, steps)
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
