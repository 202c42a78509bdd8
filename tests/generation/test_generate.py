from itertools import pairwise

import pytest
import torch

from unistep import CMStochasticIterativeScheduler
from unistep.core.pixels import to_uint8
from unistep.core.random import ImageRandom, image_seed
from unistep.errors import UserError
from unistep.formats.model import ModelInfo, precondition
from unistep.generation.generate import generate, tile_size
from unistep.generation.labels import random_labels
from unistep.generation.plan import ConsistencyPlan, DiffusionPlan, consistency_plan, spaced_timesteps

SHAPE = (1, 16, 16)
ONE_STEP = ConsistencyPlan((80.0,))
TWO_STEPS = ConsistencyPlan((80.0, 0.8))


@pytest.fixture(scope="module")
def model(lively):
    return precondition(lively(num_class_embeds=10), ModelInfo())


def images(model, indices, plan=TWO_STEPS, batch_size=64, seed=0, labels=None):
    labels = torch.tensor([i % 10 for i in indices]) if labels is None else labels
    return torch.cat(list(generate(model, plan, SHAPE, list(indices), seed=seed, labels=labels, batch_size=batch_size)))


def test_the_images_are_those_of_the_sampler(model):
    """A full tile is one call of the sampler with the noise of its images."""
    labels = torch.arange(16) % 10
    random = ImageRandom([image_seed(5, i) for i in range(16)])
    with torch.no_grad():
        expected = to_uint8(TWO_STEPS.sample(model, random.randn(*SHAPE), labels, random))
    assert torch.equal(images(model, range(16), seed=5, labels=labels), expected)


def test_image_is_made_from_seed_and_index_alone(model):
    run = images(model, range(40))
    assert torch.equal(images(model, [39]), run[39:])
    assert torch.equal(images(model, range(7, 31), batch_size=5), run[7:31])
    jumbled = [3, 3, 20, 4, 36, 35, 0]  # out of order, twice the same, two at one place of a tile
    assert torch.equal(images(model, jumbled), run[jumbled])
    assert not torch.equal(images(model, [39], seed=1), run[39:])


def test_batches_have_the_size_asked_for(model):
    done = []
    batches = generate(
        model, ONE_STEP, SHAPE, range(25), labels=torch.zeros(25).long(), batch_size=10, on_batch=done.append
    )
    assert [len(batch) for batch in batches] == [10, 10, 5]
    assert done == [10, 20, 25]


@pytest.mark.parametrize(
    ("shape", "device", "tile"),
    [((1, 28, 28), "cpu", 16), ((3, 32, 32), "cpu", 16), ((3, 64, 64), "cpu", 1), ((3, 32, 32), "cuda", 50)],
)
def test_tile_size(shape, device, tile):
    assert tile_size(shape, 50, device) == tile


@pytest.mark.parametrize("side", [16, 40])
def test_network_always_sees_whole_tiles(side):
    shape, seen = (1, side, side), []

    def denoiser(x, sigma, labels=None):
        seen.append(len(x))
        return x / 80

    for batch_size in (1, 7, 64):
        list(generate(denoiser, TWO_STEPS, shape, range(20), batch_size=batch_size))
    assert set(seen) == {tile_size(shape, 1, "cpu")}


@pytest.mark.parametrize("solver", ["heun", "euler", "dpm2", "ancestral"])
def test_diffusion_plan_evaluates_as_often_as_it_says(solver):
    calls = []

    def denoiser(x, sigma, labels=None):
        calls.append(float(sigma[0]))
        return torch.zeros_like(x)

    plan = DiffusionPlan(solver, steps=5)
    (batch,) = generate(denoiser, plan, SHAPE, range(3))
    assert len(calls) == plan.nfe
    assert calls[0] == plan.sigma_max
    assert (batch == 128).all()  # 0 in [-1, 1] is 127.5, rounded to even


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_progressive_plan_makes_the_steps_that_were_trained(steps):
    """Euler steps from level to level of the grid, the last of which ends at sigma_min: N evaluations, no other."""
    calls = []

    def denoiser(x, sigma, labels=None):
        calls.append(float(sigma[0]))
        return x.clamp(-1, 1) * 0.9

    plan = DiffusionPlan("progressive", steps, sigma_min=0.02, sigma_max=50.0, rho=5.0)
    (batch,) = generate(denoiser, plan, SHAPE, range(3))
    assert len(calls) == plan.nfe == steps
    low, high = 0.02**0.2, 50**0.2
    assert calls == pytest.approx([(high + i / steps * (low - high)) ** 5 for i in range(steps)])
    random = ImageRandom([image_seed(0, i) for i in range(3)])
    x = 50 * random.randn(*SHAPE)
    levels = [*calls, 0.02]
    for t, r in pairwise(levels):
        x = x + (r - t) * (x - denoiser(x, torch.full((3,), t))) / t
    assert (batch.int() - to_uint8(x.clamp(-1, 1)).int()).abs().max() <= 1


def test_consistency_plan_evaluates_once_a_level():
    assert ONE_STEP.nfe == 1
    assert TWO_STEPS.nfe == 2


def test_two_steps_draw_their_noise_image_by_image():
    """The fresh noise of image 1 is the same whether image 0 is there or not."""
    denoiser = lambda x, sigma, labels=None: torch.tanh(x)  # noqa: E731
    (both,) = generate(denoiser, TWO_STEPS, SHAPE, [0, 1])
    (alone,) = generate(denoiser, TWO_STEPS, SHAPE, [1])
    assert torch.equal(both[1:], alone)


@pytest.mark.parametrize(("steps", "expected"), [(1, [0]), (2, [0, 19]), (4, [0, 9, 19, 29]), (39, list(range(39)))])
def test_spaced_timesteps(steps, expected):
    assert spaced_timesteps(steps, 40) == expected


@pytest.mark.parametrize("steps", [0, 40, 1000])
def test_spaced_timesteps_refuses(steps):
    with pytest.raises(UserError, match=f"steps {steps} must lie between 1 and 39"):
        spaced_timesteps(steps, 40)


def test_consistency_plan_reads_the_grid():
    plan = consistency_plan([0, 22], 40, 0.002, 80.0, 7.0)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    assert plan.sigmas == pytest.approx((80.0, (high + 22 / 39 * (low - high)) ** 7), rel=1e-6)


def test_consistency_plan_of_a_model_trained_to_0():
    """The grid then ends at 0, as diffusers' scheduler has it: indices mean the same levels here and there."""
    plan = consistency_plan([0, 22], 40, 0.0, 80.0, 7.0)
    scheduler = CMStochasticIterativeScheduler(sigma_min=0.0)
    scheduler.set_timesteps(timesteps=[22, 0])
    assert plan.sigmas == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-6)
    assert plan.sigmas[1] == pytest.approx(80 * (17 / 39) ** 7)
    assert plan.sigma_min == 0


def test_random_labels_belong_to_the_image():
    labels = random_labels(0, range(1000), 10)
    assert torch.equal(random_labels(0, [999, 5], 10), labels[[999, 5]])
    assert not torch.equal(random_labels(1, range(1000), 10), labels)
    counts = torch.bincount(labels, minlength=10)
    assert counts.sum() == 1000 and counts.min() > 60  # 100 expected each, deviation 9.5
