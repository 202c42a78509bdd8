"""Progressive distillation: the target, the phases, and who teaches in which."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from unistep.core.noise import karras_sigma, karras_sigmas
from unistep.core.parameterization import EDMScaling, Preconditioned, expand
from unistep.core.random import ImageRandom, image_seed
from unistep.core.weighting import truncated_snr
from unistep.objectives.progressive import ProgressiveConfig, ProgressiveObjective
from unistep.objectives.protocol import dropout_generator
from unistep.objectives.target import copy_target
from unistep.samplers.guidance import Guided
from unistep.samplers.ode_step import euler_step
from unistep.samplers.progressive import progressive

MU, S = 0.3, 0.5


class Scaled(nn.Module):
    """Multiplies by its one parameter and keeps what it was called with."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.calls = []

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        self.calls.append((x, class_labels, torch.is_grad_enabled(), self.training, generator))
        return self.scale * x


def network(scale: float = 0.5) -> Preconditioned:
    return Preconditioned(Scaled(scale), EDMScaling())


def gaussian(x_t, sigma, class_labels=None, /, *, generator=None):
    """The exact denoiser of data N(MU, S^2)."""
    return MU + S**2 / (S**2 + expand(sigma, x_t.ndim) ** 2) * (x_t - MU)


def objective_of(config: ProgressiveConfig, total: int, teacher=gaussian, student=None, **more) -> ProgressiveObjective:
    target = copy_target(network() if student is None else student)
    return ProgressiveObjective(config, total, teacher=teacher, target=target, **more)


def random_of(n: int) -> ImageRandom:
    return ImageRandom([image_seed(3, i) for i in range(n)])


# ----------------------------------------------------------------------------------------------------------- the target


def two_euler_steps(x_t, index, num_scales, teacher, config):
    """Where the teacher lands, by the sampler's own step, in float64."""
    levels = karras_sigmas(2 * num_scales + 1, config.sigma_min, config.sigma_max, config.rho, dtype=torch.float64)
    t, t1, t2 = (levels[2 * index + half] for half in range(3))
    return euler_step(teacher, euler_step(teacher, x_t, t, t1), t1, t2), t, t2


@pytest.mark.parametrize("num_scales", [1, 2, 8])
@pytest.mark.parametrize("rho", [7.0, 3.0])
def test_one_step_of_the_target_lands_where_two_of_the_teacher_do(num_scales, rho, generator):
    """A student whose single Euler step ends in x_t'' has no loss, and any other has that of its distance."""
    config = ProgressiveConfig(num_scales, weighting="uniform", sigma_min=0.01, sigma_max=50.0, rho=rho)
    index = torch.arange(num_scales)
    x, noise = (torch.randn(num_scales, 1, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    asked = []

    def exact(x_t, sigma, class_labels=None, /, *, generator=None):
        landing, t, t2 = two_euler_steps(x_t, index, num_scales, gaussian, config)
        asked.append((sigma, t))
        # The Euler step x_t + (t'' - t) (x_t - D) / t reaches x_t'' with this D.
        return x_t - expand(t, 4) * (landing - x_t) / expand(t2 - t, 4)

    objective = objective_of(config, 100)
    loss = objective.loss_at(exact, x, None, index, num_scales, noise)
    assert loss.abs().max() < 1e-20
    torch.testing.assert_close(*asked[0])
    shifted = objective.loss_at(lambda *a, **k: exact(*a, **k) + 0.1, x, None, index, num_scales, noise)
    torch.testing.assert_close(shifted, torch.full((num_scales,), 0.01, dtype=torch.float64), rtol=1e-6, atol=0)


def test_an_exact_denoiser_is_all_but_exact_with_many_steps(generator):
    """With fine steps the target is the teacher's own word; the difference shrinks with the step."""
    x, noise = (torch.randn(64, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    errors = []
    for num_scales in (64, 512, 4096):
        index = torch.arange(64) * (num_scales // 64)
        objective = objective_of(ProgressiveConfig(num_scales, weighting="uniform"), 100)
        errors.append(objective.loss_at(gaussian, MU + S * x, None, index, num_scales, noise).sqrt().max().item())
    assert errors[0] > 7 * errors[1] > 49 * errors[2]  # first order: eight times the steps, an eighth of the error
    assert errors[2] < 1e-2


def test_a_perfect_student_makes_in_n_steps_what_its_teacher_makes_in_2n(generator):
    """Distilled exactly from 8 steps down to 1, the sampler still lands on the teacher's image."""
    config = ProgressiveConfig(sigma_min=0.02, sigma_max=20.0)
    noise = torch.randn(16, 1, 2, 2, generator=generator, dtype=torch.float64)

    def halved(teacher, num_scales):
        levels = karras_sigmas(2 * num_scales + 1, config.sigma_min, config.sigma_max, config.rho, dtype=torch.float64)

        def student(x_t, sigma, class_labels=None, /, *, generator=None):
            index = ((levels[::2] - sigma[0]).abs().argmin()).expand(len(x_t))
            landing, t, t2 = two_euler_steps(x_t, index, num_scales, teacher, config)
            return x_t - expand(t, 4) * (landing - x_t) / expand(t2 - t, 4)

        return student

    grid = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max, "rho": config.rho, "clip": False}
    expected = progressive(gaussian, noise, 8, **grid)
    student = gaussian
    for num_scales in (4, 2, 1):
        student = halved(student, num_scales)
        torch.testing.assert_close(progressive(student, noise, num_scales, **grid), expected)
    assert expected.std() > 0.1


def test_the_weighting_is_of_t(generator):
    x, noise = torch.randn(4, 1, 4, 4, generator=generator), torch.randn(4, 1, 4, 4, generator=generator)
    index = torch.tensor([0, 3, 6, 7])
    student = network()
    uniform, snr = (
        objective_of(ProgressiveConfig(8, weighting=w), 100, sigma_data=0.7).loss_at(student, x, None, index, 8, noise)
        for w in ("uniform", "truncated-snr")
    )
    t = karras_sigma(index, 9)
    torch.testing.assert_close(snr, truncated_snr(t, 0.7) * uniform)
    assert ProgressiveConfig().weighting == "truncated-snr"


def test_every_step_of_the_sampler_is_trained_as_often():
    """And none beyond: each t is a level from which the sampler of N steps departs."""
    config, seen = ProgressiveConfig(8), []

    def student(x_t, sigma, class_labels=None, /, *, generator=None):
        seen.append(sigma)
        return x_t

    n = 4000
    objective_of(config, 100).loss(student, torch.zeros(n, 1, 1, 1), None, 0, random_of(n), 0)
    levels = karras_sigmas(9)
    counts = [(seen[0] - level).abs().lt(1e-5 * level).sum().item() for level in levels]
    assert counts[8] == 0 and sum(counts) == n
    assert all(abs(c - n / 8) < 4 * math.sqrt(n / 8 * 7 / 8) for c in counts[:8])


def test_the_loss_is_that_of_the_indices_and_the_noise_drawn(generator):
    x, student = torch.randn(4, 1, 4, 4, generator=generator), network()
    objective = objective_of(ProgressiveConfig(4), 60)
    for step, num_scales in ((0, 4), (59, 1)):
        loss = objective.loss(student, x, None, step, random_of(4), 0)
        random = random_of(4)
        index = random.randint(num_scales)
        assert torch.equal(loss, objective.loss_at(student, x, None, index, num_scales, random.randn(1, 4, 4)))
        for i in range(4):  # whatever the batch
            alone = objective.loss(student, x[i : i + 1], None, step, ImageRandom([image_seed(3, i)]), 0)
            torch.testing.assert_close(alone, loss[i : i + 1])


# -------------------------------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize("phase", [0, 1])
def test_the_teacher_is_asked_without_gradient_and_without_dropout(phase, generator):
    x, labels = torch.randn(4, 1, 4, 4, generator=generator).requires_grad_(), torch.arange(4)
    student, teacher = network(0.5).train(), network(0.3).eval()
    config = ProgressiveConfig(2, weighting="uniform")
    objective = objective_of(config, 40, teacher, student)
    if phase:
        objective.after_step(student, 19)
    loss = objective.loss(student, x, labels, 20 * phase, random_of(4), 11)
    loss.sum().backward()
    asked = objective.target if phase else teacher
    calls = asked.network.calls  # pyright: ignore
    assert len(calls) == 2 and all(call[1] is labels and not call[2] and not call[3] for call in calls)
    assert all(call[4] is None for call in calls)
    assert teacher.network.scale.grad is None and objective.target.network.scale.grad is None  # pyright: ignore
    ((_, given, grad, training, masks),) = student.network.calls
    assert given is labels and grad and training
    expected = torch.rand(3, generator=dropout_generator(11, x))
    assert torch.equal(torch.rand(3, generator=masks), expected)

    # The gradient is that of a target that is a constant.
    again, leaf = network(0.5).double(), x.detach().double().requires_grad_()
    random = random_of(4)
    num_scales = 2 - phase
    index, noise = random.randint(num_scales), random.randn(1, 4, 4).double()
    t = karras_sigma(2 * index, 2 * num_scales + 1).double()
    x_t = leaf + expand(t, 4) * noise
    with torch.no_grad():
        landing, t, t2 = two_euler_steps(x_t, index, num_scales, asked, config)
        constant = x_t - expand(t, 4) * (landing - x_t) / expand(t2 - t, 4)
    (again(x_t, t, labels) - constant).square().mean((1, 2, 3)).sum().backward()
    assert again.network.scale.grad.abs() > 1e-4
    torch.testing.assert_close(student.network.scale.grad.double(), again.network.scale.grad, rtol=1e-4, atol=0)
    torch.testing.assert_close(x.grad.double(), leaf.grad, rtol=1e-4, atol=1e-6)


def test_guidance_is_the_first_teachers(generator):
    """Later teachers are students of the guided one, and are not guided again."""
    seen = []

    def denoiser(x_t, sigma, class_labels=None, /):
        seen.append(class_labels)
        return 0.9 * x_t / (1 + expand(sigma, 4)) + 0.1 * expand(class_labels, 4)

    x, labels = torch.randn(2, 1, 4, 4, generator=generator), torch.tensor([0, 1])
    student = network()
    config = ProgressiveConfig(2, guidance=2.0, weighting="uniform")
    objective = objective_of(config, 40, Guided(denoiser, 2.0, null_label=2), student)
    objective.loss(student, x, labels, 0, random_of(2), 0)
    assert [call.tolist() for call in seen] == [[0, 1, 2, 2]] * 2
    objective.after_step(student, 19)
    objective.loss(student, x, labels, 20, random_of(2), 0)
    assert len(seen) == 2


# -------------------------------------------------------------------------------------------------------------- phases


@pytest.mark.parametrize(
    ("start", "end", "total", "expected"),
    [
        (8, 1, 600, [(8, 0, 100), (4, 100, 200), (2, 200, 400), (1, 400, 600)]),
        (8, 4, 100, [(8, 0, 50), (4, 50, 100)]),
        (8, 2, 101, [(8, 0, 25), (4, 25, 50), (2, 50, 101)]),
        (1, 1, 7, [(1, 0, 7)]),
        (2, 1, 4, [(2, 0, 2), (1, 2, 4)]),
        (12, 3, 9, [(12, 0, 3), (6, 3, 6), (3, 6, 9)]),
        (6, 6, 5, [(6, 0, 5)]),
    ],
)
def test_phases_halve_and_the_last_two_are_twice_as_long(start, end, total, expected):
    assert ProgressiveConfig(start, end).phases(total) == expected


@pytest.mark.parametrize(("start", "end"), [(64, 1), (1024, 1), (48, 3), (64, 2)])
@pytest.mark.parametrize("extra", [0, 1, 5, 1000, 99_991])
def test_phases_fill_the_run_without_a_gap(start, end, extra):
    config = ProgressiveConfig(start, end)
    scales = [start]
    while scales[-1] > end:
        scales.append(scales[-1] // 2)
    total = len(scales) + sum(n <= 2 for n in scales) + extra
    phases = config.phases(total)
    assert [n for n, _, _ in phases] == scales
    assert phases[0][1] == 0 and phases[-1][2] == total
    assert all(a[2] == b[1] for a, b in zip(phases, phases[1:], strict=False))
    shares = [(b - a) / (2 if n <= 2 else 1) for n, a, b in phases]
    assert min(shares) >= 1 and max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("start", "end", "total", "least"), [(8, 1, 5, 6), (1, 1, 1, 2), (64, 1, 8, 9), (64, 4, 4, 5), (2, 2, 1, 2)]
)
def test_too_few_steps_are_refused(start, end, total, least):
    config = ProgressiveConfig(start, end)
    with pytest.raises(ValueError, match=f"`steps` {total} are too few for .*; give at least {least}") as refused:
        config.phases(total)
    assert "\n" not in str(refused.value)
    assert len(config.phases(least)) == math.log2(start // end) + 1
    with pytest.raises(ValueError, match="too few"):
        objective_of(config, total)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start_scales": 6}, "`start_scales` 6 must be `end_scales` 1 times a power of two"),
        ({"start_scales": 12, "end_scales": 5}, "`start_scales` 12 must be `end_scales` 5 times"),
        ({"start_scales": 4, "end_scales": 8}, "`start_scales` 4 must"),
        ({"start_scales": 0}, "`start_scales` 0"),
        ({"end_scales": 0}, "`end_scales` 0"),
        ({"start_scales": -4, "end_scales": -1}, "`end_scales` -1"),
        ({"sigma_min": 0.0}, "`sigma_min` 0.0 must lie above 0"),
        ({"sigma_min": 80.0}, "`sigma_min` 80.0 must lie above 0 and below `sigma_max` 80.0"),
        ({"rho": 0.0}, "rho"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveConfig(**fields)


def test_the_objective_says_its_phase_at_every_step():
    objective = objective_of(ProgressiveConfig(8), 600)
    for step, num_scales, phase in (
        (0, 8, (0, 100)),
        (99, 8, (0, 100)),
        (100, 4, (100, 200)),
        (199, 4, (100, 200)),
        (200, 2, (200, 400)),
        (400, 1, (400, 600)),
        (599, 1, (400, 600)),
    ):
        assert objective.num_scales(step) == num_scales
        assert objective.phase(step) == phase
        assert objective.scalars(step) == {"num_scales": float(num_scales)}


def test_the_student_becomes_the_teacher_at_the_end_of_a_phase_and_not_before(generator):
    student = network(0.1)
    objective = objective_of(ProgressiveConfig(8), 600, student=student)
    taught = []
    for step in range(600):
        with torch.no_grad():
            student.network.scale.fill_(step + 1.0)
        objective.after_step(student, step)
        taught.append(None if objective.first_teacher else objective.target.network.scale.item())  # pyright: ignore
    # Entry k is the teacher after step k: the weights of the step that ended the phase; the last is left to itself.
    assert taught == [None] * 99 + [100.0] * 100 + [200.0] * 200 + [400.0] * 201
    with torch.no_grad():
        student.network.scale.fill_(7.0)
    assert objective.target.network.scale.item() == 400.0  # pyright: ignore


def test_the_target_has_no_gradient_and_does_not_drop():
    student = network().train()
    objective = objective_of(ProgressiveConfig(2), 4, student=student)
    objective.after_step(student, 1)
    assert not any(module.training for module in objective.target.modules())
    assert not any(p.requires_grad for p in objective.target.parameters())
    assert student.training and student.network.scale.requires_grad
    assert objective.parameters() == []


# --------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("at", [18, 19, 25])
def test_a_resumed_objective_has_the_teacher_of_the_phase(at, generator):
    """Just before the boundary, at it, and beyond."""
    x = torch.randn(4, 1, 4, 4, generator=generator)
    config = ProgressiveConfig(2)
    student = network(0.2)
    whole = objective_of(config, 40, student=student)
    for step in range(at + 1):
        with torch.no_grad():
            student.network.scale.add_(0.01)
        whole.after_step(student, step)
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    assert bool(state) == (at >= 19)

    resumed = objective_of(config, 40, student=network(0.9))
    resumed.load_state_dict(state)
    for objective in (whole, resumed):
        objective.after_step(student, at + 1)
    probe = network(0.6)
    for step in (at + 1, 39):
        losses = [o.loss(probe, x, None, step, random_of(4), 0) for o in (whole, resumed)]
        assert torch.equal(*losses)
    if at == 19:  # and it is the student that teaches: the first teacher's loss is another
        first = objective_of(config, 40).loss(probe, x, None, 20, random_of(4), 0)
        assert not torch.allclose(whole.loss(probe, x, None, 20, random_of(4), 0), first)


def test_a_run_of_one_phase_keeps_its_teacher():
    student = network()
    objective = objective_of(dataclasses.replace(ProgressiveConfig(), start_scales=4, end_scales=4), 3)
    for step in range(3):
        objective.after_step(student, step)
    assert objective.first_teacher is gaussian and objective.state_dict() == {}
