"""Diffusion models sampled with classifier-free guidance."""

import dataclasses

import numpy as np
import pytest
import torch

import unistep
from unistep.core.random import ImageRandom, image_seeds
from unistep.errors import UserError
from unistep.exporting.make import make_program
from unistep.formats.model import ModelInfo
from unistep.generation.generate import generate
from unistep.generation.plan import DiffusionPlan, make_plan
from unistep.samplers.guidance import Guided

SHAPE = (1, 8, 8)
LABELS = torch.arange(5) % 3


def classified(x, sigma, labels=None, /):
    """A denoiser whose answer tells the class; 3 stands for none."""
    return x * 0.25 / (0.25 + sigma[:, None, None, None] ** 2) + 0.1 * (labels[:, None, None, None] - 1)


@pytest.mark.parametrize("solver", ["heun", "dpm2", "ancestral"])
def test_it_samples_the_guided_denoiser(solver):
    plan = DiffusionPlan(solver, 4, guidance=2.0, null_label=3)
    plain = dataclasses.replace(plan, guidance=1.0)
    (expected,) = generate(Guided(classified, 2.0, 3), plain, SHAPE, range(5), labels=LABELS)
    (found,) = generate(classified, plan, SHAPE, range(5), labels=LABELS)
    assert torch.equal(found, expected)
    assert not torch.equal(found, next(generate(classified, plain, SHAPE, range(5), labels=LABELS)))


def test_each_evaluation_is_two():
    plan, asked = DiffusionPlan("heun", 4, guidance=3.0, null_label=3), []

    def counted(x, sigma, labels=None, /):
        asked.append(len(labels))
        return classified(x, sigma, labels)

    list(generate(counted, plan, SHAPE, range(16), labels=torch.arange(16) % 3))
    assert sum(asked) == 16 * plan.nfe and plan.nfe == 2 * DiffusionPlan("heun", 4).nfe


@pytest.mark.parametrize(
    ("info", "scale", "words"),
    [
        (ModelInfo("diffusion"), 2.0, "`guidance` 2 is for .* null class"),
        (ModelInfo(), 2.0, "`guidance` 2 is for .* null class"),
        (ModelInfo("diffusion", null_label=3), 0.5, "`guidance`"),
        (ModelInfo("diffusion", null_label=3), float("nan"), "`guidance`"),
    ],
)
def test_refused(info, scale, words):
    with pytest.raises(UserError, match=words):
        make_plan(info, guidance=scale)


@pytest.fixture(scope="module")
def teacher(saved):
    return saved("diffusion", null_label=3, num_class_embeds=4, sample_size=28)


def test_images_do_not_depend_on_the_batch(teacher):
    options = {"num_images": 20, "steps": 2, "guidance": 2.0, "progress": False}
    some, all_at_once = (unistep.sample(teacher, batch_size=size, **options) for size in (3, 64))
    assert torch.equal(some.pixels, all_at_once.pixels) and some.evaluations == 6


def test_one_is_no_guidance(teacher):
    options = {"num_images": 3, "steps": 2, "progress": False}
    one, none = unistep.sample(teacher, guidance=1, **options), unistep.sample(teacher, **options)
    assert torch.equal(one.pixels, none.pixels) and one.evaluations == none.evaluations == 3


def test_evaluations_and_exports_have_it(teacher):
    options = {"steps": 2, "guidance": 2.0}
    made = unistep.sample(teacher, num_images=6, progress=False, **options)
    report = unistep.evaluate(teacher, reference="mnist-test", metrics=["is"], num_images=6, progress=False, **options)
    assert report.to_dict()["samples"]["evaluations"] == 6
    program = make_program(unistep.load(teacher), "sampler", **options)
    noise = ImageRandom(image_seeds(0, range(6))).randn(*made.pixels.shape[1:])
    assert made.labels is not None
    with torch.no_grad():
        found = program(noise[:, None], made.labels).permute(0, 3, 1, 2)
    assert np.abs(found.int().numpy() - made.pixels.int().numpy()).max() <= 1
