"""Classifier-free guidance: the formula, its identity, and what it does to the consistency objective's step."""

import pytest
import torch

from unistep.core.random import ImageRandom
from unistep.objectives.consistency import ConsistencyConfig, ConsistencyObjective
from unistep.objectives.denoising import DenoisingConfig, DenoisingObjective
from unistep.samplers.guidance import Guided


def labelled(x_t, sigma, class_labels=None, /):
    """A denoiser whose answer tells the class: class c gives 0.1 (c + 1) x."""
    return 0.1 * (class_labels + 1)[:, None, None, None] * x_t


@pytest.fixture
def x(generator):
    return torch.randn(4, 1, 3, 3, generator=generator)


SIGMA = torch.tensor([0.5, 1.0, 2.0, 4.0])
LABELS = torch.tensor([0, 1, 2, 0])


def test_scale_one_is_the_model(x):
    torch.testing.assert_close(Guided(labelled, 1.0, 3)(x, SIGMA, LABELS), labelled(x, SIGMA, LABELS), atol=0, rtol=0)


def test_formula(x):
    # The null class 3 answers 0.4 x, so class c guided by w = 2 answers 0.2 (c + 1) x - 0.4 x.
    expected = (0.2 * (LABELS + 1) - 0.4)[:, None, None, None] * x
    guided = Guided(labelled, 2.0, 3)
    torch.testing.assert_close(guided(x, SIGMA, LABELS), expected)
    torch.testing.assert_close(guided.correction(x, SIGMA, LABELS), expected - labelled(x, SIGMA, LABELS))


def test_needs_labels(x):
    with pytest.raises(ValueError, match="class_labels"):
        Guided(labelled, 2.0, 3)(x, SIGMA)


def test_same_noise_step_moves_by_the_correction(x, generator):
    """With a teacher that names the clean image whatever the class is, the guided step is the plain one; with one
    that knows classes it is the Euler step of the guided teacher in which D(x_t, t, c) is replaced by x."""
    noise = torch.randn(x.shape, generator=generator)
    t, r = SIGMA, SIGMA / 3
    x_t = x + t[:, None, None, None] * noise
    config = ConsistencyConfig(guidance=2.0)
    guided = Guided(labelled, 2.0, 3)
    objective = ConsistencyObjective(config, 10, teacher=guided)
    seen = []

    def student(x_t, sigma, class_labels=None, /, *, generator=None):
        seen.append(x_t)
        return x_t

    objective.loss_at(student, x, LABELS, t, r, noise)
    d = (x_t - (x + guided.correction(x_t, t, LABELS))) / t[:, None, None, None]
    torch.testing.assert_close(seen[1], x_t + (r - t)[:, None, None, None] * d)


def test_guidance_needs_a_guided_teacher():
    with pytest.raises(ValueError, match="guided teacher"):
        ConsistencyObjective(ConsistencyConfig(guidance=2.0), 10, teacher=labelled)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_label_dropout_uses_the_null_class(dropout):
    seen = []

    def student(x_t, sigma, class_labels=None, /, *, generator=None):
        seen.append(class_labels)
        return x_t

    n = 2000
    objective = DenoisingObjective(DenoisingConfig(label_dropout=dropout), null_label=7)
    labels = torch.arange(n) % 7
    objective.loss(student, torch.zeros(n, 1, 2, 2), labels, 0, ImageRandom(range(n)), 0)
    dropped = seen[0] == 7
    assert abs(dropped.double().mean() - dropout) < 0.04
    assert torch.equal(seen[0][~dropped], labels[~dropped])


def test_label_dropout_needs_a_null_class():
    with pytest.raises(ValueError, match="null class"):
        DenoisingObjective(DenoisingConfig(label_dropout=0.1))
