"""The table of solvers: what a row says is what the solver does."""

import subprocess
import sys

import pytest
import torch

from unistep.core.random import ImageRandom, image_seed
from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.generation.plan import DiffusionPlan
from unistep.samplers.table import SOLVERS, find_solver


@pytest.mark.parametrize("row", SOLVERS.values(), ids=lambda row: row.name)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_solver_makes_as_many_evaluations_as_its_row_says(row, steps):
    calls = []

    def denoiser(x, sigma, class_labels=None):
        calls.append(sigma)
        return x / (1 + sigma[:, None, None, None] ** 2)

    random = ImageRandom([image_seed(0, 0), image_seed(0, 1)])
    plan = DiffusionPlan(row.name, steps)
    images = plan.sample(denoiser, random.randn(1, 4, 4), None, random)
    assert len(calls) == row.evaluations(steps) == plan.nfe
    assert images.shape == (2, 1, 4, 4) and images.abs().max() <= 1


@pytest.mark.parametrize("row", SOLVERS.values(), ids=lambda row: row.name)
def test_a_solver_draws_if_its_row_says_so(row):
    seeds = [image_seed(0, 0)]
    random, untouched = ImageRandom(seeds), ImageRandom(seeds)
    x_T = torch.zeros(1, 1, 2, 2)
    DiffusionPlan(row.name, 3).sample(lambda x, sigma, labels=None: 0 * x, x_T, None, random)
    assert torch.equal(random.randn(4), untouched.randn(4)) is not row.stochastic


@pytest.mark.parametrize("refuse", [find_solver, DiffusionPlan, lambda name: ModelInfo("diffusion", solver=name)])
def test_a_solver_that_is_not_in_the_table_is_refused(refuse):
    with pytest.raises(UserError, match="`solver` hein: must be one of heun, .*did you mean heun"):
        refuse("hein")


def test_the_table_costs_no_import_of_torch():
    code = "import sys, unistep.samplers.table as t; assert 'torch' not in sys.modules, 1; print(len(t.SOLVERS))"
    assert int(subprocess.check_output([sys.executable, "-c", code])) == len(SOLVERS)
