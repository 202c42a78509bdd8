"""Jumps of flow maps, on Gaussian data whose flow map is known."""

import math
from dataclasses import replace

import pytest
import torch
from closed_form import Mixture

from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom
from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.generation.plan import ConsistencyPlan, JumpPlan, make_plan
from unistep.samplers.consistency import sample_multistep
from unistep.samplers.jumps import jump, sample_jumps

DATA = Mixture(torch.ones(1), torch.tensor([[0.2, -0.1]]), torch.tensor([[0.3, 0.7]]), torch.eye(2)[None], size=4)
MAP = ModelInfo(sigma_min=0.0, flow_map=True, num_train_timesteps=40)


DOUBLE = Mixture(*(getattr(DATA, name).double() for name in ("weights", "means", "spreads", "axes")), size=4)


def exact(x, sigma, labels=None, end=None, /):
    """The clean image that an Euler step must aim at to be at `end` where the trajectory is."""
    end = torch.zeros_like(sigma) if end is None else end
    data = DOUBLE if x.dtype == torch.float64 else DATA
    share = expand(end / sigma, x.ndim)
    return (data.moved(x, sigma, float(end[0])) - share * x) / (1 - share)


@pytest.mark.parametrize("levels", [[80.0], [80.0, 1.0], [80.0, 5.0, 0.4, 0.05], [80.0, 2.0, 0.0]])
def test_any_list_of_jumps_ends_where_one_does(levels, generator):
    noise = torch.randn(5, 2, 4, 4, generator=generator, dtype=torch.float64)
    one = exact(80 * noise, torch.full((5,), 80.0, dtype=torch.float64))
    torch.testing.assert_close(sample_jumps(exact, noise, levels, clip=False), one)


def test_a_jump_between_is_on_the_trajectory(generator):
    x = 3 * torch.randn(5, 2, 4, 4, generator=generator, dtype=torch.float64)
    sigma = torch.full((5,), 3.0, dtype=torch.float64)
    torch.testing.assert_close(jump(exact, x, 3.0, 0.5), DOUBLE.moved(x, sigma, 0.5))
    torch.testing.assert_close(jump(exact, x, 3.0, 0.0), exact(x, sigma))


def test_all_noise_anew_is_the_sampler_of_consistency_models(generator):
    noise = torch.randn(5, 2, 4, 4, generator=generator)
    seeds = list(range(5))
    levels = [80.0, 3.0, 0.5]
    found = sample_jumps(exact, noise, levels, gamma=1.0, random=ImageRandom(seeds), clip=False)
    expected = sample_multistep(exact, noise, levels, random=ImageRandom(seeds), sigma_min=0.0, clip=False)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gamma", [0.3, 0.9])
def test_restarts_keep_the_distribution(gamma):
    noise = torch.randn(2000, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    images = sample_jumps(
        exact, noise, [80.0, 2.0, 0.3], gamma=gamma, random=ImageRandom(list(range(2000))), clip=False
    )
    z = DATA.coordinates(images)[:, 0]
    torch.testing.assert_close(z.std(0), torch.tensor([0.3, 0.7]), rtol=0.02, atol=0)
    with pytest.raises(ValueError, match="needs a source"):
        sample_jumps(exact, noise[:2], [80.0, 2.0], gamma=gamma)


def test_the_plan_of_a_flow_map():
    plan = make_plan(MAP, steps=2)
    assert isinstance(plan, JumpPlan) and plan.nfe == 2 and plan.gamma == 0 and plan.guidance is None
    assert make_plan(replace(MAP, gamma=1.0), steps=2).gamma == 1  # pyright: ignore
    assert make_plan(MAP, sigmas=[80, 1.0], gamma=0.5) == JumpPlan((80.0, 1.0), 0.0, 80.0, True, gamma=0.5)
    guided = make_plan(replace(MAP, guidance_scale=2.0), guidance=4.0, clip=False)
    assert guided == JumpPlan((80.0,), 0.0, 80.0, False, guidance=4.0)
    assert type(make_plan(ModelInfo(), steps=2)) is ConsistencyPlan


@pytest.mark.parametrize(
    ("info", "given", "words"),
    [
        (ModelInfo(), {"gamma": 0.5}, "`gamma` 0.5 is for flow maps"),
        (ModelInfo("diffusion"), {"gamma": 0.5}, "`gamma` 0.5 is for flow maps"),
        (MAP, {"guidance": 2.0}, "`guidance` 2 is for flow maps with an input for it"),
        (MAP, {"gamma": 1.5}, "gamma"),
        (replace(MAP, guidance_scale=2.0), {"guidance": 0.5}, "guidance"),
        (replace(MAP, guidance_scale=2.0), {"guidance": math.nan}, "guidance"),
    ],
)
def test_refused_choices(info, given, words):
    with pytest.raises(UserError, match=words):
        make_plan(info, **given)


def test_refused_models():
    for changes in ({"sigma_min": 0.002}, {"kind": "diffusion"}, {"gamma": 2.0}, {"guidance_scale": 0.5}):
        with pytest.raises(UserError, match="flow_map|gamma|guidance_scale"):
            replace(MAP, **changes)


def test_the_scale_of_guidance_reaches_the_network(generator):
    given = []

    def watching(x, sigma, labels=None, end=None, /, *, guidance=None):
        given.append(guidance)
        return exact(x, sigma, labels, end)

    noise = torch.randn(3, 2, 4, 4, generator=generator)
    JumpPlan((80.0, 1.0), 0.0, guidance=3.0).sample(watching, noise, None, ImageRandom([0, 1, 2]))
    assert [g.tolist() for g in given] == [[3.0] * 3] * 2
