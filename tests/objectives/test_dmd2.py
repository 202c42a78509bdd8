"""DMD2 in closed form: with Gaussian data and samples, all denoisers and the divergence are known."""

import copy
import math

import pytest
import torch
from closed_form import SIGMA_DATA, Affine, Mixture, rotation, train
from small_unet import move_off_zero, small_unet
from torch import nn

from unistep.core.parameterization import EDMScaling, Preconditioned, expand
from unistep.core.random import ImageRandom
from unistep.errors import UserError
from unistep.networks.song import SongUNetConfig
from unistep.objectives.dmd2 import DMD2Config, DMD2Objective
from unistep.objectives.dmd2_critic import FakeScore, fake_score
from unistep.objectives.methods import METHODS
from unistep.objectives.protocol import ObjectiveInputs
from unistep.samplers.consistency import sample_multistep
from unistep.samplers.guidance import Guided
from unistep.training.config import OptimizerConfig
from unistep.workflows.runs.network import build_network


class Gaussian(nn.Module):
    """The denoiser of pixels of one mean and standard deviation."""

    def __init__(self, mean: float, spread: float) -> None:
        super().__init__()
        self.mean, self.spread = nn.Parameter(torch.tensor(mean, dtype=torch.float64)), spread

    def forward(self, x_t, sigma, class_labels=None):
        return self.mean + self.spread**2 / (self.spread**2 + expand(sigma, x_t.ndim) ** 2) * (x_t - self.mean)


UNET = small_unet(
    down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1
)


def of_network(config=UNET, seed: int = 0) -> Preconditioned:
    """A denoiser with a network none of whose layers is zero."""
    model, generator = Preconditioned(build_network(config, seed), EDMScaling()), torch.Generator().manual_seed(seed)
    move_off_zero(model, generator)
    return model


def built(student, teacher, **changes) -> DMD2Objective:
    return METHODS["dmd2"].config(**changes).build(ObjectiveInputs(student, 12, teacher=teacher))


@pytest.mark.parametrize("t", [0.1, 0.7, 4.0])
def test_the_gradient_is_that_of_the_divergence(t):
    """KL(N(m', s'^2 + t^2) || N(m, s^2 + t^2)) by m' and s', for samples m' + s' z."""
    (m, s), (mean, spread) = (0.2, 0.5), (0.6, 0.3)
    teacher, critic = Gaussian(m, s), FakeScore(Gaussian(mean, spread))
    objective = DMD2Objective(DMD2Config(), teacher=teacher, critic=critic)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 1, 2, 2, generator=generator, dtype=torch.float64)
    z = torch.cat([z, -z])
    parameters = torch.tensor([mean, spread], dtype=torch.float64, requires_grad=True)
    samples = (parameters[0] + parameters[1] * z).requires_grad_()
    levels, noise = z.new_full((len(z),), t), torch.randn(z.shape, generator=generator).double()
    loss = objective.student_loss(samples, None, levels, noise)
    (by_samples,) = torch.autograd.grad(loss.sum(), samples, retain_graph=True)
    x_t = samples.detach() + t * noise
    scale = (samples - teacher(x_t, levels)).abs().mean((1, 2, 3), keepdim=True).detach()
    # Of the mean over 4 pixels, with the weight; the difference of the scores is that of the denoisers over t^2.
    score = 4 * scale * by_samples / t**2
    exact = (x_t - m) / (s**2 + t**2) - (x_t - mean) / (spread**2 + t**2)
    torch.testing.assert_close(score, exact, rtol=1e-9, atol=1e-12)
    (found,) = torch.autograd.grad((score * samples).mean(), parameters)
    expected = (mean - m) / (s**2 + t**2), spread * (1 / (s**2 + t**2) - 1 / (spread**2 + t**2))
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0.04, atol=0.008)


def test_the_loss_by_hand(generator):
    """That of the authors' code: half the mean square of the step, and EDM's weighted denoising error."""
    teacher, critic = Gaussian(0.2, 0.5), FakeScore(Gaussian(-0.1, 0.4))
    objective = DMD2Objective(DMD2Config(), SIGMA_DATA, teacher=teacher, critic=critic)
    x, noise = torch.randn(2, 5, 1, 2, 2, generator=generator).double().unbind()
    t = torch.rand(5, generator=generator).double() + 0.1
    x_t = x + expand(t, 4) * noise
    real, fake = teacher(x_t, t), critic.denoiser(x_t, t)
    step = (fake - real) / (x - real).abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(objective.student_loss(x, None, t, noise), 0.5 * step.square().mean((1, 2, 3)))
    error = (fake - x).square().mean((1, 2, 3))
    torch.testing.assert_close(objective.critic_loss(x, None, t, noise), (t**-2 + 4) * error)


def test_noise_levels():
    objective = DMD2Objective(DMD2Config(), teacher=Gaussian(0.0, 1.0), critic=FakeScore(Gaussian(0.0, 1.0)))
    position = torch.tensor([0.0, 0.5, 1.0])
    root = torch.tensor([0.002, 80.0]) ** (1 / 7)
    ends, middle = torch.tensor([0.002, 80.0]), float(root.mean() ** 7)
    torch.testing.assert_close(objective.level(position), torch.tensor([ends[0], middle, ends[1]]))
    own = objective.level(position, student=True)
    expected = (root[0] + torch.tensor([0.02, 0.5, 0.98]) * (root[1] - root[0])) ** 7
    torch.testing.assert_close(own, expected)
    assert DMD2Config().levels() == [80.0]
    four = DMD2Config(student_steps=4).levels()
    assert four == pytest.approx([80.0, 17.53, 2.515, 0.1699], rel=1e-3)
    assert DMD2Config(student_steps=2).levels() == [80.0, four[2]]


def test_turns():
    objective = DMD2Objective(
        DMD2Config(critic_steps=2, critic_lr=0.1), teacher=Gaussian(0.0, 1.0), critic=FakeScore(Gaussian(0.0, 1.0))
    )
    assert [objective.trained(step) for step in range(6)] == ["critic", "critic", None] * 2
    (critic,) = objective.critics().values()
    assert critic.network is objective.critic and critic.optimizer == {"lr": 0.1}


@pytest.mark.parametrize("gan", [0.0, 0.01])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_gives_the_network_that_it_trains_a_gradient_and_no_other(gan, steps, autocast):
    student, teacher = of_network(seed=1), of_network()
    teacher.requires_grad_(False)
    objective = built(student, teacher, gan=gan, student_steps=steps, critic_steps=1)
    if objective.critic.head is not None:
        nn.init.normal_(objective.critic.head.weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # else teacher and critic agree
        for p in objective.critic.denoiser.parameters():
            p.mul_(0.9)
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = objective.loss(
                student, torch.zeros(4, 1, 8, 8), torch.arange(4) % 3, step, ImageRandom(range(4)), None
            )
        assert loss.shape == (4,)
        loss.mean().backward()
        trained, other = (student, objective.critic) if step else (objective.critic, student)
        assert all(p.grad is not None and bool(p.grad.any()) for p in trained.parameters())
        assert all(p.grad is None for p in other.parameters())
        assert all(p.requires_grad for p in objective.critic.parameters())
        student.zero_grad()
        objective.critic.zero_grad()


def test_the_discriminators_gradient_reaches_the_student_through_the_critic():
    teacher = of_network()
    objective = built(teacher, teacher, gan=1.0)
    assert objective.critic.head is not None
    nn.init.normal_(objective.critic.head.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    # The critic is still the teacher: the rest of the loss has no gradient.
    loss = objective.student_loss(x, torch.arange(3), torch.full((3,), 0.3), torch.zeros(3, 1, 8, 8))
    (found,) = torch.autograd.grad(loss.sum(), x)
    with torch.no_grad():
        for change in (1e-3, -1e-3):
            moved = x.detach() + change * found
            again = objective.student_loss(moved, torch.arange(3), torch.full((3,), 0.3), torch.zeros(3, 1, 8, 8))
            expected = loss + change * found.square().sum((1, 2, 3))
            torch.testing.assert_close(again, expected, rtol=0, atol=0.05 * 1e-3 * float(found.square().sum()))


def test_the_discriminator_learns_to_tell_data_from_samples():
    teacher = of_network()
    objective = built(teacher, teacher, gan=0.01, critic_gan=1.0)
    optimizer = torch.optim.Adam(objective.critic.parameters(), 3e-3)
    dark, bright = torch.full((8, 1, 8, 8), -0.5), torch.full((8, 1, 8, 8), 0.5)
    t, labels = torch.full((8,), 0.1), torch.zeros(8, dtype=torch.int64)
    for _ in range(20):
        _, real = objective.critic(bright, t, labels)
        loss = objective.critic_loss(dark, labels, t, torch.zeros_like(dark)) + nn.functional.softplus(-real)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    real, fake = (objective.critic(x, t, labels)[1].mean() for x in (bright, dark))
    assert real > 0.5 > -0.5 > fake


@pytest.mark.parametrize(
    "config",
    [
        UNET,
        SongUNetConfig(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            model_channels=16,
            channel_mult=(1, 2),
            attn_resolutions=(),
            num_class_embeds=3,
        ),
    ],
)
def test_features_of_every_backbone(config):
    teacher = of_network(config)
    critic = fake_score(teacher, (1, 8, 8))
    x, t, labels = torch.zeros(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 2])
    denoised, logit = critic(x, t, labels)
    torch.testing.assert_close(denoised, teacher.eval()(x, t, labels), rtol=0, atol=0)
    assert logit.tolist() == [0.0, 0.0] and critic.head.in_features >= 16


def test_the_critic_begins_as_the_teacher_and_is_another_network():
    teacher = of_network().requires_grad_(False)
    objective = built(of_network(seed=1), Guided(teacher, 2.0, 2), guidance=2.0)
    own = objective.critic.denoiser.state_dict()
    assert all(torch.equal(own[name], value) for name, value in teacher.state_dict().items())
    with torch.no_grad():
        next(objective.critic.parameters()).add_(1)
    assert not torch.equal(next(iter(objective.critic.denoiser.parameters())), next(teacher.parameters()))
    again = built(of_network(seed=1), teacher)
    again.load_state_dict(copy.deepcopy(objective.state_dict()))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in objective.state_dict().items())
    assert objective.networks() == {"critic": objective.critic.denoiser}


def test_what_the_student_is_given_is_what_it_is_sampled_with():
    """Backward simulation: the input at the last level is that of sampling, by the same noise."""
    student = of_network(seed=1)
    objective = built(student, of_network(), student_steps=3)
    labels, given = torch.arange(8) % 3, []

    def watched(x_t, sigma, class_labels=None, /, **_):
        given.append((x_t, sigma))
        return student(x_t, sigma, class_labels)

    with torch.no_grad():
        inputs, sigma = objective.simulated(watched, torch.zeros(8, 1, 8, 8), labels, ImageRandom(range(8)), None)
        random = ImageRandom(range(8))
        first, chosen = random.randn(1, 8, 8), random.randint(3)
        steps = [(80 * first, torch.full((8,), 80.0))]
        record = lambda x_t, s, c, /: (steps.append((x_t, s)), student(x_t, s, c))[1]  # noqa: E731
        sample_multistep(record, first, objective.levels, labels, random=random, sigma_min=0.002)
    assert len(given) == 2 and chosen.unique().tolist() == [0, 1, 2]
    for i in range(8):
        x_t, level = steps[chosen[i] + 1]
        torch.testing.assert_close(inputs[i], x_t[i])
        torch.testing.assert_close(sigma[i], level[i])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student_steps": 0}, "student_steps"),
        ({"critic_steps": 0}, "critic_steps"),
        ({"critic_lr": 0.0}, "positive"),
        ({"low": 0.5, "high": 0.5}, "below"),
        ({"gan": -1.0}, "gan"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"rho": 0.0}, "positive"),
    ],
)
def test_numbers_out_of_range(changes, words):
    with pytest.raises(UserError, match=words):
        DMD2Config(**changes)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="give at least 6"):
        DMD2Config().check_steps(5)
    student = of_network()
    with pytest.raises(ValueError, match="needs a teacher"):
        built(student, None)
    with pytest.raises(ValueError, match="needs a network"):
        built(student, lambda x_t, sigma, labels=None, /: x_t)
    with pytest.raises(ValueError, match="guided"):
        built(student, student, guidance=2.0)
    affine = Preconditioned(Affine(1), EDMScaling())
    with pytest.raises(ValueError, match="config"):
        built(affine, affine, gan=0.1)
    with pytest.raises(ValueError, match="middle block"):
        built(student, affine, gan=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_the_students_distribution_becomes_that_of_the_data(steps):
    """Two correlated channels, from a student whose samples have a quarter of the data's standard deviation."""
    axes, spreads, mean = rotation(30.0), torch.tensor([0.4, 0.1]), torch.tensor([0.1, -0.2])
    data = Mixture(torch.ones(1), mean[None], spreads[None], axes[None])
    scaling = EDMScaling(SIGMA_DATA, noise_embedding="edm")
    student, critic = (Preconditioned(Affine(2), scaling) for _ in range(2))
    config = METHODS["dmd2"].config(student_steps=steps, critic_lr=0.03)
    objective = DMD2Objective(config, SIGMA_DATA, teacher=data, critic=FakeScore(critic))
    optimizer = OptimizerConfig("adamw", lr=0.01, betas=(0.0, 0.99), decay="cosine")
    model = train(student, objective, data, optimizer, 1800 * steps, batch=256, ema_decay=0.98)
    # The critic is given the samples of all levels, and this one, a Gaussian's, sees of them their common covariance.
    found = []
    for count in range(1, steps + 1):
        random = ImageRandom(range(20_000 * count, 20_000 * (count + 1)))
        sigmas = config.levels()[:count]
        found.append(sample_multistep(model, random.randn(2, 1, 1), sigmas, None, random=random, clip=False))
    samples = torch.cat(found).detach()[:, :, 0, 0]
    along = (samples - mean) @ axes
    assert along.std(0).tolist() == pytest.approx(spreads.tolist(), rel=0.04)
    assert along.mean(0).abs().max() < 0.04 * spreads.max()
    correlation = float(torch.corrcoef(along.T)[0, 1])
    assert math.fabs(correlation) < 0.05
