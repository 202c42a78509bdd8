"""What the consistency objective promises beside the values of its losses."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from unistep.core.curriculum import ect_r
from unistep.core.distance import l1, l2
from unistep.core.noise import discretized_lognormal, karras_sigmas, pair_sigmas
from unistep.core.parameterization import ConsistencyScaling, EDMScaling, Preconditioned, expand
from unistep.core.random import ImageRandom, image_seed
from unistep.networks.adm import UNet, UNetConfig
from unistep.objectives.consistency import ConsistencyConfig, ConsistencyObjective
from unistep.objectives.methods import METHODS
from unistep.objectives.posterior import posterior_mean
from unistep.objectives.protocol import dropout_generator
from unistep.objectives.target import copy_target
from unistep.samplers.guidance import Guided

TARGETS = ("ema", "stop-gradient")
TOTAL = 100
# The methods that are rows of this objective.
ROWS = {name: row.config() for name, row in METHODS.items() if row.config_class is ConsistencyConfig}


class Scaled(nn.Module):
    """Multiplies by its one parameter and keeps what it was called with."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.calls = []

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        self.calls.append((x, c_noise, class_labels))
        return self.scale * x


def teacher(x_t, sigma, class_labels=None, /):
    return expand(0.25 / (0.25 + sigma**2), x_t.ndim) * x_t


def exact_objective(**fields) -> ConsistencyObjective:
    target = fields.pop("network", None)
    return ConsistencyObjective(ConsistencyConfig(**fields), TOTAL, teacher=teacher, target=target)


def objective_of(name: str, student: nn.Module) -> ConsistencyObjective:
    return ConsistencyObjective(ROWS[name], TOTAL, teacher=teacher, target=copy_target(student))


def random_of(n: int) -> ImageRandom:
    return ImageRandom([image_seed(3, i) for i in range(n)])


@pytest.fixture
def x(generator):
    return torch.randn(4, 1, 4, 4, generator=generator)


@pytest.fixture
def unit_noise(generator, x):
    return torch.randn(x.shape, generator=generator)


@pytest.fixture
def dropping(generator) -> Preconditioned:
    """A U-Net that drops half of its units; no parameter is zero, so that every mask shows."""
    config = UNetConfig(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 8),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
        attn_norm_num_groups=4,
        dropout=0.5,
    )
    network = UNet(config)
    for p in network.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    return Preconditioned(network, ConsistencyScaling())


# ------------------------------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("step", ["same-noise", "heun"])
@pytest.mark.parametrize("target", TARGETS)
def test_student_and_target_drop_the_same_units(target, step, dropping, x, unit_noise):
    """At t = r both see the same images, and the same weights: only masks can tell their outputs apart."""
    objective = exact_objective(target=target, step=step, network=copy_target(dropping))
    t = torch.tensor([0.1, 1.0, 5.0, 80.0])
    for seed in (0, 1):
        assert torch.equal(objective.loss_at(dropping, x, None, t, t, unit_noise, seed), torch.zeros(4))
    # ... and masks do tell them apart.
    x_t = x + expand(t, 4) * unit_noise
    outputs = [dropping(x_t, t, generator=dropout_generator(seed, x)) for seed in (0, 1)]
    assert (l2(*outputs) > 1e-6).all()
    assert torch.equal(outputs[0], dropping(x_t, t, generator=dropout_generator(0, x)))


def test_the_dropout_seed_is_used(dropping, x, unit_noise):
    objective = exact_objective(network=copy_target(dropping))
    t, r = torch.full((4,), 2.0), torch.full((4,), 1.0)
    losses = [objective.loss_at(dropping, x, None, t, r, unit_noise, seed) for seed in (0, 1, 0)]
    assert (losses[0] != losses[1]).all() and torch.equal(losses[0], losses[2])


def test_a_target_copied_from_a_student_in_eval_mode_drops(dropping, x, unit_noise):
    target = copy_target(dropping.eval())
    dropping.train()
    assert all(module.training for module in target.modules())
    objective = exact_objective(target="ema", network=target)
    t = torch.ones(4)
    assert torch.equal(objective.loss_at(dropping, x, None, t, t, unit_noise, 5), torch.zeros(4))


def test_masks_do_not_repeat_the_noise_of_an_image_with_the_same_seed(x):
    seed = image_seed(0, 0)
    mask = torch.rand(64, generator=dropout_generator(seed, x))
    assert not torch.isin(mask, ImageRandom([seed]).rand(256)).any()


# ------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("step", ["same-noise", "heun", "euler"])
def test_only_the_prediction_is_differentiated(step, target, x, unit_noise):
    student, average, guide = (Preconditioned(Scaled(a), EDMScaling()) for a in (0.5, 0.4, 0.3))
    objective = ConsistencyObjective(ConsistencyConfig(step=step, target=target), TOTAL, teacher=guide, target=average)
    t, r = torch.full((4,), 2.0), torch.full((4,), 1.0)
    x.requires_grad_()
    objective.loss_at(student, x, None, t, r, unit_noise).sum().backward()
    assert average.network.scale.grad is None and guide.network.scale.grad is None

    # The same loss with a target that is a constant: the images' gradient too comes through x_t alone.
    y = student.network if target == "stop-gradient" else average.network
    x_r = y.calls[-1][0] / EDMScaling().c_in(r)[0]
    constant = Preconditioned(y, EDMScaling())(x_r, r).detach()
    again, leaf = Preconditioned(Scaled(0.5), EDMScaling()), x.detach().clone().requires_grad_()
    l2(again(leaf + 2.0 * unit_noise, t), constant).sum().backward()
    assert again.network.scale.grad.abs() > 1e-3
    torch.testing.assert_close(student.network.scale.grad, again.network.scale.grad)
    torch.testing.assert_close(x.grad, leaf.grad)


def test_copy_target_is_frozen_and_apart():
    student = Preconditioned(Scaled(), EDMScaling())
    target = copy_target(student)
    assert not any(p.requires_grad for p in target.parameters())
    assert all(p.requires_grad for p in student.parameters())
    with torch.no_grad():
        student.network.scale.add_(1)
    assert target.network.scale.item() == 0.5


# ------------------------------------------------------------------------------------------------ boundary


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("step", ["same-noise", "heun", "euler"])
def test_at_sigma_min_the_target_is_x_r(step, target, x, unit_noise):
    """The last pair of the grid ends at sigma_min; the network's word for it is not asked, even NaN."""

    class BadAtSigmaMin(nn.Module):
        def forward(self, x, sigma, class_labels=None, *, generator=None):
            return torch.where(expand(sigma, 4) > 0.0021, x / 2, torch.nan)

    num = 40
    t, r = pair_sigmas(torch.tensor([0, 20, num - 2, num - 2]), num)
    objective = exact_objective(step=step, target=target, network=BadAtSigmaMin())
    loss = objective.loss_at(BadAtSigmaMin(), x, None, t, r, unit_noise)

    x_t = x + expand(t, 4) * unit_noise
    x_r = objective._step(x, x_t, t, r, unit_noise, None)
    expected = torch.cat([l2(x_t / 2, x_r / 2)[:2], l2(x_t / 2, x_r)[2:]])
    assert torch.equal(loss, expected)


def test_at_r_zero_the_target_is_the_clean_image(x, unit_noise):
    config = ROWS["ect"]
    t = torch.tensor([0.01, 0.5, 2.0, 80.0])
    r = ect_r(t, 0)
    assert (r == 0).tolist() == [True, True, False, False]

    def student(x_t, sigma, class_labels=None, /, *, generator=None):
        return torch.where(expand(sigma, 4) > 0, x_t / 2, torch.nan)

    loss = ConsistencyObjective(config, TOTAL).loss_at(student, x, None, t, r, unit_noise)
    x_t, x_r = (x + expand(level, 4) * unit_noise for level in (t, r))
    y = torch.cat([x[:2], x_r[2:] / 2])
    torch.testing.assert_close(loss, (x_t / 2 - y).flatten(1).norm(dim=1) / (t - r))


# ------------------------------------------------------------------------------------------------ target network


@pytest.mark.parametrize("mu", [0.0, 0.25, 0.75])
def test_the_target_moves_by_one_minus_mu(mu):
    """Numbers of few bits: the update is exact."""
    student, target = nn.Linear(3, 2), nn.Linear(3, 2)
    with torch.no_grad():
        for sign, network in ((1, student), (-1, target)):
            for p in network.parameters():
                p.copy_(sign * 4.0 * torch.arange(1, p.numel() + 1).reshape(p.shape))
    old_student, old_target = copy.deepcopy(student), copy.deepcopy(target)
    exact_objective(target="ema", ema_decay=mu, network=target).after_step(student, 7)
    for new, of_target, of_student in zip(
        target.parameters(), old_target.parameters(), old_student.parameters(), strict=True
    ):
        assert torch.equal(new, mu * of_target + (1 - mu) * of_student)
    for p, old in zip(student.parameters(), old_student.parameters(), strict=True):
        assert torch.equal(p, old)


@pytest.mark.parametrize("step", [0, 50, 99])
def test_the_adaptive_mu_of_the_step_moves_the_target(step):
    student, target = Scaled(1.0), Scaled(0.0)
    objective = ConsistencyObjective(ROWS["ct"], TOTAL, target=target)
    objective.after_step(student, step)
    assert target.scale.item() == pytest.approx(1 - objective.scalars(step)["target_decay"], rel=1e-5)


def test_without_an_average_nothing_moves():
    given = Scaled(0.25)
    objective = ConsistencyObjective(ROWS["ict"], TOTAL, target=given)
    objective.after_step(Scaled(1.0), 0)
    assert given.scale.item() == 0.25
    assert objective.state_dict() == {}


def test_the_state_restores_the_target():
    first, second = (ConsistencyObjective(ROWS["ct"], TOTAL, target=Scaled(a)) for a in (0.25, 0.75))
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["scale"].item() == 0.25


# ------------------------------------------------------------------------------------------------ curriculum


def test_scalars_of_the_published_schedules(golden):
    for row in golden.json("schedules.json"):
        c = row["config"]
        if c["scale_mode"] not in ("fixed", "progressive"):
            continue
        config = ConsistencyConfig(
            target="ema",
            scales=c["scale_mode"],
            start_scales=c["start_scales"],
            end_scales=c["end_scales"],
            ema_decay=c["start_ema"],
            ema_adaptive=c["target_ema_mode"] == "adaptive",
        )
        objective = ConsistencyObjective(config, c["total_steps"], target=Scaled())
        for step, num, mu in zip(row["steps"], row["scales"], row["target_ema"], strict=True):
            assert objective.scalars(step) == {"num_scales": num, "target_decay": pytest.approx(mu, rel=1e-12)}


def test_scalars_of_the_rows():
    def at(name, *steps):
        objective = objective_of(name, Scaled())
        return [objective.scalars(step) for step in steps]

    assert at("cd", 0, 99) == [{"num_scales": 40.0, "target_decay": 0.95}] * 2
    # Eight doublings from 10 + 1 levels in 100 steps: one every 12.
    assert at("ict", 0, 11, 12, 83, 84, 99) == [{"num_scales": n} for n in (11.0, 11.0, 21.0, 641.0, 1281.0, 1281.0)]
    # Eight stages: one every 12.5 steps; the last holds on.
    assert at("ect", 0, 12, 13, 87, 88, 99, 500) == [{"stage": s} for s in (0.0, 0.0, 1.0, 6.0, 7.0, 7.0, 7.0)]
    # The same stages, but from the first step to the last in steps of 7/99.
    assert at("stable-ct", 0, 33, 66, 99, 500) == [
        {"stage": pytest.approx(s, abs=1e-12)} for s in (0, 7 / 3, 14 / 3, 7, 7)
    ]


# ------------------------------------------------------------------------------------------------ randomness


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("step", [0, 60, 99])
def test_pairs_descend_within_the_range(name, step):
    config = ROWS[name]
    t, r = objective_of(name, Scaled()).draw_pairs(step, random_of(200))
    assert t.shape == r.shape == (200,) and t.dtype == r.dtype == torch.float32
    assert (t > r).all() and (r >= config.sigma_min).all() and (t <= config.sigma_max).all()
    assert len(t.unique()) > 1 or config.num_scales(step, TOTAL) == 2


@pytest.mark.parametrize("stages", [1, 2, 8])
def test_the_smooth_mapping_tightens_a_little_every_step(stages):
    config = dataclasses.replace(ROWS["stable-ct"], stages=stages)
    found = [config.stage(step, TOTAL) for step in range(TOTAL)]
    assert found[0] == 0 and found[-1] == stages - 1
    steps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert steps == pytest.approx([(stages - 1) / (TOTAL - 1)] * (TOTAL - 1))
    assert config.stage(0, 1) == 0  # a run of one step

    # Every step takes the same part of the gap, but for small t, where r is 0 at first.
    t = torch.tensor([0.05, 1.0, 30.0], dtype=torch.float64)
    objective = ConsistencyObjective(config, TOTAL)
    gaps = torch.stack([(t - ect_r(t, objective.scalars(step)["stage"])) / t for step in range(TOTAL)])
    ratio = gaps[1:] / gaps[:-1]
    part = 2 ** -((stages - 1) / (TOTAL - 1))
    assert (ratio < 1 + 1e-12).all() and (ratio > part - 1e-12).all()
    assert ratio[:, 2].tolist() == pytest.approx([part] * (TOTAL - 1))
    at_once = dataclasses.replace(config, tightening="stages")
    assert at_once.stage(0, TOTAL) == 0 and at_once.stage(TOTAL - 1, TOTAL) == stages - 1


@pytest.mark.parametrize("name", ["cd", "ict"])
def test_every_pair_of_the_grid_is_drawn_as_often_as_it_should(name):
    config = dataclasses.replace(ROWS[name], start_scales=7, end_scales=14)
    n, num = 4000, config.num_scales(0, TOTAL)
    t, r = ConsistencyObjective(config, TOTAL, teacher=teacher, target=Scaled()).draw_pairs(0, random_of(n))
    levels = karras_sigmas(num)
    index = torch.searchsorted(-levels, -t)
    assert torch.equal(levels[index], t) and torch.equal(levels[index + 1], r)
    p = torch.full((num - 1,), 1 / (num - 1)) if name == "cd" else discretized_lognormal(num).float()
    # Four standard deviations of a count.
    assert ((torch.bincount(index, minlength=num - 1) - n * p).abs() < 4 * (n * p * (1 - p)).sqrt() + 1).all()


def test_the_mapping_draws_a_lognormal_t_and_its_r_of_the_stage():
    objective = objective_of("ect", Scaled())
    t, r = objective.draw_pairs(40, random_of(4000))
    assert float(t.log().mean()) == pytest.approx(-1.1, abs=0.15)
    assert float(t.log().std()) == pytest.approx(2.0, abs=0.1)
    assert torch.equal(r, ect_r(t, stage=3))


# The mean of "mean-noise" is over the batch.
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.step != "mean-noise"])
def test_the_loss_of_an_image_does_not_depend_on_its_batch(name, x):
    student = Preconditioned(Scaled(), EDMScaling())
    objective, seeds = objective_of(name, student), [11, 12, 13, 14]
    together = objective.loss(student, x, None, 50, ImageRandom(seeds), 0)
    for i, seed in enumerate(seeds):
        alone = objective.loss(student, x[i : i + 1], None, 50, ImageRandom([seed]), 0)
        torch.testing.assert_close(alone, together[i : i + 1])
    assert len(together.unique()) == 4


@pytest.mark.parametrize("name", ROWS)
def test_the_loss_is_that_of_the_pairs_and_the_noise_drawn(name, x):
    student = Preconditioned(Scaled(), EDMScaling())
    objective = objective_of(name, student)
    loss = objective.loss(student, x, None, 50, random_of(4), 0)
    random = random_of(4)
    t, r = objective.draw_pairs(50, random)
    assert torch.equal(loss, objective.loss_at(student, x, None, t, r, random.randn(1, 4, 4)))
    assert loss.shape == (4,) and (loss > 0).all()


# ------------------------------------------------------------------------------------------------ the batch's mean


def brute_force_mean(x_t, t, x, labels):
    """sum_i w_i x_i with w_i proportional to N(x_t; x_i, t^2) over the images of the same class, in float64."""
    means = []
    for i in range(len(x)):
        same = [j for j in range(len(x)) if labels is None or labels[j] == labels[i]]
        logs = [-float((x_t[i].double() - x[j].double()).square().sum()) / (2 * float(t[i]) ** 2) for j in same]
        weights = [math.exp(v - max(logs)) for v in logs]
        means.append(sum(w * x[j].double() for w, j in zip(weights, same, strict=True)) / sum(weights))
    return torch.stack(means)


@pytest.fixture
def batch(generator):
    """Eight images of three classes, and noise levels at most of which several of them count."""
    x = torch.rand(8, 3, 2, 2, generator=generator) * 2 - 1
    return x, torch.tensor([0, 1, 0, 0, 1, 2, 0, 1]), torch.tensor([0.3, 0.5, 1.0, 2.0, 4.0, 3.0, 20.0, 80.0])


@pytest.mark.parametrize("labelled", [True, False])
def test_the_posterior_mean_is_that_of_the_score_identity(labelled, batch, generator):
    x, labels, t = batch
    labels = labels if labelled else None
    x_t = x + expand(t, 4) * torch.randn(x.shape, generator=generator)
    found = posterior_mean(x_t, t, x, labels)
    expected = brute_force_mean(x_t, t, x, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-7)
    if labelled:
        torch.testing.assert_close(found[5], x[5], rtol=0, atol=1e-7)  # the only one of its class
        assert (found[7] - x[[1, 4, 7]].mean(0)).abs().max() < 0.05
    assert (found - x).abs().amax((1, 2, 3))[[3, 4, 6, 7]].min() > 0.1  # others do count


@pytest.mark.parametrize("labelled", [True, False])
def test_the_posterior_mean_at_the_ends_of_the_range(labelled, batch, generator):
    """Down at small levels it is the image, far above the mean of its class; in half precision too."""
    x, labels, _ = batch
    noise = torch.randn(x.shape, generator=generator)
    labels = labels if labelled else None
    small, large = torch.full((8,), 1e-3), torch.full((8,), 1e6)
    assert torch.equal(posterior_mean(x + 1e-3 * noise, small, x, labels), x)
    of_class = torch.stack([x[labels == c].mean(0) if labelled else x.mean(0) for c in (labels if labelled else x)])
    torch.testing.assert_close(posterior_mean(x + 1e6 * noise, large, x, labels), of_class, rtol=0, atol=1e-4)
    x_t = x.requires_grad_() + 2 * noise
    assert posterior_mean(x_t.bfloat16(), small + 2, x.bfloat16(), labels).isfinite().all()


def test_the_mean_noise_step_goes_towards_the_mean(batch, generator):
    """x_r = x_bar + r/t (x_t - x_bar), so that x_bar itself is the target at r = 0."""
    x, labels, t = batch
    noise = torch.randn(x.shape, generator=generator)
    r = t * torch.tensor([0.0, 0.0, 0.25, 0.5, 0.75, 0.5, 0.9, 0.999])
    objective = ConsistencyObjective(ROWS["stable-ct"], TOTAL)
    x_t = x + expand(t, 4) * noise
    x_bar = brute_force_mean(x_t, t, x, labels)
    x_r = x_bar + expand(r / t, 4) * (x_t - x_bar)
    found = objective._step(x, x_t, t, r, noise, labels)
    torch.testing.assert_close(found.double(), x_r, rtol=1e-5, atol=1e-5)

    def student(x_t, sigma, class_labels=None, /, *, generator=None):
        return torch.where(expand(sigma, 4) > 0, x_t / 2, torch.nan)

    y = torch.cat([x_bar[:2], x_r[2:] / 2])
    loss = objective.loss_at(student, x, labels, t, r, noise)
    torch.testing.assert_close(loss.double(), (x_t / 2 - y).flatten(1).norm(dim=1) / (t - r), rtol=1e-4, atol=0)


def test_the_mean_of_one_image_is_the_image(x, unit_noise):
    """A batch of one, and a batch of as many classes as images, have the loss of the same-noise step."""
    student = Preconditioned(Scaled(), EDMScaling())
    mean, same = (
        ConsistencyObjective(dataclasses.replace(ROWS["stable-ct"], step=step), TOTAL)
        for step in ("mean-noise", "same-noise")
    )
    t = torch.tensor([0.1, 1.0, 5.0, 80.0])
    r = ect_r(t, 3)
    expected = same.loss_at(student, x, None, t, r, unit_noise)
    torch.testing.assert_close(mean.loss_at(student, x, torch.arange(4), t, r, unit_noise), expected)
    for i in range(4):
        one = slice(i, i + 1)
        alone = mean.loss_at(student, x[one], None, t[one], r[one], unit_noise[one])
        torch.testing.assert_close(alone, expected[one])
    # ... and with others of its class beside it an image has another loss.
    assert not torch.allclose(mean.loss_at(student, x, None, t, r, unit_noise), expected, rtol=0.01)


def test_the_mean_has_the_sign_and_less_of_the_variance_of_the_image():
    """What it is for: the slope (x_t - x)/t of one image is an estimate of (x_t - E[x | x_t])/t, and this a better one.

    Images are ones or minus ones of equal number, so that E[x | x_t] = tanh(x_t summed / t^2).
    """
    n, t = 256, torch.full((256,), 3.0)
    generator = torch.Generator().manual_seed(1)
    x = torch.ones(n, 1, 2, 2)
    x[::2] = -1
    x_t = x + 3 * torch.randn(x.shape, generator=generator)
    exact = torch.tanh(x_t.sum((1, 2, 3)) / 9)[:, None, None, None].expand_as(x)
    torch.testing.assert_close(posterior_mean(x_t, t, x), exact, rtol=1e-5, atol=1e-5)
    assert (x - exact).square().mean() > 0.5


@pytest.mark.parametrize("step", ["same-noise", "mean-noise"])
def test_guidance_moves_the_step_by_what_it_adds_to_the_denoiser(step, batch, generator):
    def denoiser(x_t, sigma, class_labels=None, /):
        return x_t / (1 + expand(sigma, 4)) + 0.1 * expand(class_labels, 4)

    x, labels, t = batch
    noise, r = torch.randn(x.shape, generator=generator), t / 3
    config = dataclasses.replace(ROWS["stable-ct"], step=step, guidance=2.5)
    objective = ConsistencyObjective(config, TOTAL, teacher=Guided(denoiser, 2.5, null_label=3))
    plain = ConsistencyObjective(dataclasses.replace(config, guidance=1.0), TOTAL)
    x_t = x + expand(t, 4) * noise
    moved = [o._step(x, x_t, t, r, noise, labels) for o in (objective, plain)]
    # (w - 1) (D(x, c) - D(x)) = 1.5 * 0.1 (c - 3), times 1 - r/t = 2/3
    expected = moved[1] + expand(0.1 * (labels - 3.0), 4)
    torch.testing.assert_close(moved[0], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="needs a guided teacher"):
        ConsistencyObjective(config, TOTAL, teacher=denoiser)


# ------------------------------------------------------------------------------------------------ perceptual distance


def test_the_perceptual_distance_is_the_network_that_is_given(x, unit_noise):
    seen = []

    def perceptual(a, b):
        seen.append((a, b))
        return (a - b).abs().amax((1, 2, 3))

    student = Preconditioned(Scaled(), EDMScaling())
    config = dataclasses.replace(ROWS["cd"], distance="lpips", weighting="snr")
    objective = ConsistencyObjective(config, TOTAL, teacher=teacher, target=copy_target(student), perceptual=perceptual)
    t, r = pair_sigmas(torch.tensor([0, 10, 20, 38]), 40)
    loss = objective.loss_at(student, x, None, t, r, unit_noise)
    ((a, b),) = seen
    assert torch.equal(loss, t**-2 * perceptual(a, b))
    assert a.requires_grad and not b.requires_grad
    torch.testing.assert_close(a, student(x + expand(t, 4) * unit_noise, t))
    # Another distance does not ask it.
    plain = ConsistencyObjective(
        ROWS["cd"], TOTAL, teacher=teacher, target=copy_target(student), perceptual=lambda a, b: pytest.fail("asked")
    )
    plain.loss_at(student, x, None, t, r, unit_noise)
    with pytest.raises(ValueError, match="'lpips' needs its network"):
        ConsistencyObjective(config, TOTAL, teacher=teacher, target=Scaled())


# ------------------------------------------------------------------------------------------------ the rest


def test_all_networks_are_given_the_labels(x, unit_noise):
    networks = [Scaled(a) for a in (0.5, 0.4, 0.3)]
    student, average, guide = (Preconditioned(network, EDMScaling()) for network in networks)
    objective = ConsistencyObjective(ROWS["cd"], TOTAL, teacher=guide, target=average)
    labels, t = torch.arange(4), torch.full((4,), 2.0)
    objective.loss_at(student, x, labels, t, t / 2, unit_noise)
    assert [len(network.calls) for network in networks] == [1, 1, 2]
    assert all(call[2] is labels for network in networks for call in network.calls)


def test_the_huber_constant_grows_with_the_image():
    """Only 0.00054 sqrt(C H W) makes the loss of a scaled-up image scale with it."""
    t, r = torch.tensor([2.0]), torch.tensor([1.0])
    objective = ConsistencyObjective(ROWS["ict"], TOTAL)
    for side in (2, 8):
        one = torch.full((1, 1, side, side), 1e-3)
        loss = objective.loss_at(lambda x, s, c=None, /, *, generator=None: x, one, None, t, r, one)
        # prediction - target = (t - r) * noise, of norm 1e-3 side; c = 0.00054 side
        assert float(loss) == pytest.approx(((1e-3**2 + 0.00054**2) ** 0.5 - 0.00054) * side, rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start_scales": 1}, "scales must grow"),
        ({"start_scales": 40, "end_scales": 39}, "scales must grow"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"ema_decay": -0.1}, "ema_decay"),
        ({"sigma_min": -1.0}, "sigma_min"),
        ({"sigma_min": 80.0}, "sigma_min"),
        ({"P_std": -1.0}, "P_std"),
        ({"huber_c": -1e-3}, "huber_c"),
        ({"rho": 0.0}, "rho"),
        ({"q": 1.0}, "must exceed 1"),
        ({"stages": 0}, "at least 1"),
        ({"pairs": "mapping", "q": 256.0, "stages": 3}, "no gap"),
        ({"pairs": "mapping", "step": "heun"}, "set it to euler"),
        ({"sigma_min": 0.0, "step": "heun"}, "set it to euler"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        ConsistencyConfig(**fields)


def test_the_last_stage_that_the_config_lets_pass_has_a_gap():
    config = ConsistencyConfig(pairs="mapping", q=256.0, stages=2, adj="const")
    objective = ConsistencyObjective(config, TOTAL)
    t, r = objective.draw_pairs(TOTAL - 1, random_of(100))
    assert (t > r).all()


@pytest.mark.parametrize(
    ("name", "networks", "message"),
    [("cd", {"target": Scaled()}, "needs a teacher"), ("ct", {}, "EMA target"), ("cd", {"teacher": teacher}, "EMA")],
)
def test_missing_networks(name, networks, message):
    with pytest.raises(ValueError, match=message):
        ConsistencyObjective(ROWS[name], TOTAL, **networks)


def test_targets_of_ended_trajectories_are_not_evaluated(x, unit_noise):
    """Without dropout, whose masks are those of the whole batch: the loss is the same.

    One image is evaluated always, since a process must gather weights in parts together with the others.
    """
    asked = []

    def student(x_t, sigma, class_labels=None, *, generator=None):
        asked.append(len(x_t))
        return x_t / (1 + expand(sigma, x_t.ndim))

    objective = ConsistencyObjective(ConsistencyConfig(pairs="mapping", weighting="1/(t-r)"), 10)
    for ended in range(len(x) + 1):
        t = torch.linspace(1.0, 2.0, len(x))
        r = torch.where(torch.arange(len(x)) < ended, 0.0, t / 2)
        asked.clear()
        few = objective.loss_at(student, x, None, t, r, unit_noise, None)
        assert asked == [len(x), max(len(x) - ended, 1)]
        torch.testing.assert_close(few, objective.loss_at(student, x, None, t, r, unit_noise, 0))


def test_small_gaps_are_evaluated_in_single_precision(generator):
    """bf16 has no digit left of a gap of 1/4096; wider ones stay as autocast has them."""
    dtypes = []

    class Watching(torch.nn.Module):
        def forward(self, x, c_noise, class_labels=None, *, generator=None):
            out = torch.nn.functional.conv2d(x, torch.ones(1, 1, 1, 1))
            dtypes.append(out.dtype)
            return out

    student = Preconditioned(Watching(), EDMScaling())
    x, n = (torch.randn(2, 1, 4, 4, generator=generator) for _ in range(2))
    t = torch.tensor([0.5, 2.0])
    for q, stages, dtype in ((4096.0, 1, torch.float32), (2.0, 8, torch.bfloat16), (2.0, 12, torch.float32)):
        config = METHODS["ect"].config(q=q, stages=stages)
        with torch.autocast("cpu", torch.bfloat16):
            ConsistencyObjective(config, 10).loss_at(student, x, None, t, 0.999 * t, n, None)
        assert set(dtypes) == {dtype}, (q, stages)
        dtypes.clear()


def test_clipped_loss_is_that_of_images_as_they_are_shown(x, unit_noise):
    """Values beyond the end where the target is have no part in it; all others have the usual gradient."""
    t, r = torch.full((len(x),), 2.0), torch.zeros(len(x))
    clean = x.sign() * (x.abs() > 0.2)  # black, grey and white
    outputs = (4 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 2).requires_grad_()

    def student(x_t, sigma, class_labels=None, *, generator=None):
        return outputs if sigma[0] == 2 else torch.full_like(x_t, torch.nan)

    config = ConsistencyConfig(pairs="mapping", distance="l2", clip=True)
    loss = ConsistencyObjective(config, 10).loss_at(student, clean, None, t, r, unit_noise, 0)
    beyond = ((clean == -1) & (outputs <= -1)) | ((clean == 1) & (outputs >= 1))
    assert 0.05 < beyond.float().mean() < 0.5
    torch.testing.assert_close(loss, l2(torch.where(beyond, clean, outputs), clean))
    (gradient,) = torch.autograd.grad(loss.sum(), outputs)
    assert torch.equal(gradient != 0, ~beyond & (outputs != clean))


def test_clipped_targets_lie_in_the_range(x, unit_noise):
    """The student's own outputs are targets, too: those beyond an end count as the end."""
    t = torch.full((len(x),), 2.0)
    outputs = {2.0: 0.5, 1.0: 3.0}

    def student(x_t, sigma, class_labels=None, *, generator=None):
        return torch.full_like(x_t, outputs[float(sigma[0])])

    config = ConsistencyConfig(pairs="mapping", distance="l1", clip=True)
    loss = ConsistencyObjective(config, 10).loss_at(student, x, None, t, t / 2, unit_noise, 0)
    torch.testing.assert_close(loss, l1(torch.full_like(x, 0.5), torch.ones_like(x)))
