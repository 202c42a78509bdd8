"""A run of several phases: optimizer, rates and averages begin afresh at each; and what is trained beside the student.

The student has one weight, so that the optimizer can be followed by hand.
"""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unistep.core.parameterization import EDMScaling, Preconditioned
from unistep.data.dataset import ImageDataset
from unistep.objectives.progressive import ProgressiveConfig, ProgressiveObjective
from unistep.objectives.protocol import Objective, PlainObjective
from unistep.objectives.target import copy_target
from unistep.runtime.interrupt import Interrupted
from unistep.training.config import OptimizerConfig, TrainerConfig
from unistep.training.optimizer import build_optimizer
from unistep.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_accelerator_left")

OPTIMIZER = OptimizerConfig("adamw", lr=0.05, warmup_steps=2, decay="cosine", weight_decay=0.1)
DECAY = 0.9
PHASES = ((0, 4), (4, 7), (7, 13))
STEPS = 13


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        return self.weight * x


class Phased(PlainObjective):
    """Draws the weight to the number of the phase; keeps the gradients, the weights, and the steps it is told of."""

    def __init__(self, extra: bool = False) -> None:
        self.extra = [nn.Parameter(torch.tensor([2.0, -1.0]))] if extra else []
        self.gradients: list[tuple[float, ...]] = []
        self.weights: list[float] = []
        self.stop: int | None = None

    def loss(self, student, x, class_labels, step, random, dropout_seed):
        if step == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        weight = student.module.weight if hasattr(student, "module") else student.weight
        goal = 3.0 * [start for start, end in PHASES if start <= step < end][0]
        loss = (weight - goal) ** 2 + 0.1 * random.randn(1)[:, 0] * weight
        for p in self.extra:
            loss = loss + ((p - random.randn(2)) ** 2).sum(1)
        return loss

    def after_step(self, student, step):
        self.weights.append(student.weight.item())

    def phase(self, step):
        return next(phase for phase in PHASES if phase[0] <= step < phase[1])

    def parameters(self):
        return self.extra

    def state_dict(self):
        return {str(i): p.detach() for i, p in enumerate(self.extra)}

    def load_state_dict(self, state):
        with torch.no_grad():
            for i, p in enumerate(self.extra):
                p.copy_(state[str(i)])


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    images = torch.randint(256, (10, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageDataset(images, torch.arange(10) % 3)


@pytest.fixture
def trainer(dataset, tmp_path) -> Callable[..., Trainer]:
    """trainer(objective, name="run", student=None, phase_done=None, **fields of TrainerConfig)"""

    def build(objective: Objective, name: str = "run", student=None, phase_done=None, **fields) -> Trainer:
        config = TrainerConfig(
            **(
                {"steps": STEPS, "batch_size": 4, "log_every": 1, "checkpoint_every": 100, "ema_decays": (DECAY, 0.5)}
                | {"optimizer": OPTIMIZER}
                | fields
            )
        )
        accelerator = Accelerator(cpu=True, mixed_precision="no")
        student = student or Network()
        return Trainer(
            tmp_path / name,
            student,
            objective,
            dataset,
            config,
            seed=5,
            accelerator=accelerator,
            phase_done=phase_done,
        )

    return build


def logged(run: Trainer, *names: str) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [tuple(line[name] for name in names) for line in lines]


def averages(run: Trainer) -> dict[float, dict[str, Tensor]]:
    return {d: {name: v.clone() for name, v in average.items()} for d, average in run.ema.averages.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --------------------------------------------------------------------------------------------------------- each phase


def test_the_rate_starts_again_in_every_phase(trainer):
    run = trainer(Phased())
    used = []
    run.optimizer.optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
    run.run()
    expected = [OPTIMIZER.lr_at(step - start, end - start) for start, end in PHASES for step in range(start, end)]
    assert used == [lr for (lr,) in logged(run, "lr")] == expected


@pytest.mark.parametrize("name", ["adamw", "radam"])
def test_each_phase_is_as_a_run_of_its_own_from_the_weights_before(trainer, name):
    """Moments, step counts and averages forget the phase before; the weights, and nothing else, are handed over."""
    optimizer = OptimizerConfig(name, lr=0.05, betas=(0.9, 0.99))
    objective, ended = Phased(), []
    run = trainer(objective, optimizer=optimizer, phase_done=lambda model, *_: ended.append(model.weight.item()))
    used: list[float] = []
    run.optimizer.optimizer.register_step_pre_hook(
        lambda o, *_: used.append(o.param_groups[0]["params"][0].grad.item())
    )
    run.run()

    before = 1.0
    for (start, end), average in zip(PHASES, ended, strict=True):
        weight = nn.Parameter(torch.tensor(before))
        fresh = build_optimizer(optimizer, [weight])
        mean = before
        for step in range(start, end):
            weight.grad = torch.tensor(used[step])
            fresh.step()
            assert objective.weights[step] == weight.item()
            rate = min(DECAY, (1 + step - start) / (10 + step - start))
            mean = rate * mean + (1 - rate) * weight.item()
        assert average == pytest.approx(mean, rel=1e-6)
        before = weight.item()
    assert len({round(value, 3) for value in ended}) == 3


def test_there_is_one_optimizer_whatever_the_phases(trainer):
    """Accelerate unscales fp16 gradients once for each that it knows of, and keeps their moments."""
    run = trainer(Phased())
    run.run()
    assert len(run.accelerator._optimizers) == 1


def test_the_end_of_every_phase_is_told_once_with_the_averaged_model(trainer):
    told = []

    def phase_done(model, step, seconds):
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        assert model.weight.item() == run.ema.averages[DECAY]["weight"].item() != run.student.weight.item()
        told.append((step, seconds))

    run = trainer(Phased(), phase_done=phase_done)
    run.run()
    assert [step for step, _ in told] == [4, 7, 13]
    assert [seconds for _, seconds in told] == sorted(seconds for _, seconds in told) and told[0][1] > 0
    assert told[-1][1] <= run.seconds


def test_a_run_without_phases_ends_once(trainer):
    told = []
    trainer(PlainPhased(), phase_done=lambda model, step, seconds: told.append(step)).run()
    assert told == [STEPS]


class PlainPhased(Phased):
    def phase(self, step):
        return PlainObjective.phase(self, step)


# ------------------------------------------------------------------------------------------------- stop and go on again


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("at", [3, 4, 5, 6, 7, 12])
def test_a_run_cut_around_a_boundary_ends_as_the_uninterrupted_one(trainer, at, extra):
    """After `at` steps: just before the boundary at 4, on it, in the next phase ..."""
    told: dict[str, list[tuple[int, float]]] = {"whole": [], "cut": []}

    def phase_done(name):
        return lambda model, step, seconds: told[name].append((step, model.weight.item()))

    whole = trainer(Phased(extra), "whole", phase_done=phase_done("whole"))
    whole.run()
    stopping = Phased(extra)
    stopping.stop = at - 1
    with pytest.raises(Interrupted) as stopped:
        trainer(stopping, "cut", phase_done=phase_done("cut")).run()
    assert stopped.value.step == at
    objective = Phased(extra)
    resumed = trainer(objective, "cut", phase_done=phase_done("cut"))
    averaged = resumed.run()

    assert torch.equal(resumed.student.weight, whole.student.weight)
    assert torch.equal(averaged.weight, whole.averaged().weight)
    for decay, average in averages(whole).items():
        assert same(average, averages(resumed)[decay])
    assert same(whole.objective.state_dict(), objective.state_dict())
    assert logged(resumed, "step", "loss", "lr", "grad_norm") == logged(whole, "step", "loss", "lr", "grad_norm")
    assert told["cut"] == told["whole"]  # no phase ends twice
    states = [run.optimizer.state_dict()["state"] for run in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(same(states[0][i], states[1][i]) for i in states[0])


class Tiny(nn.Module):
    """A few weights behind the interface of a network, with dropout masks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(17, 16)
        nn.init.normal_(self.layer.weight, std=0.1, generator=torch.Generator().manual_seed(1))
        nn.init.zeros_(self.layer.bias)

    def forward(self, x, c_noise, class_labels=None, *, generator=None):
        h = torch.cat([x.flatten(1), c_noise[:, None]], 1)
        if self.training and generator is not None:
            h = h * (torch.rand(h.shape, generator=generator) > 0.1)
        return self.layer(h).view_as(x)


def distilling() -> tuple[Preconditioned, ProgressiveObjective]:
    """Of 4, 2 and 1 steps in 5 shares: the phases of 15 steps end after 3, 9 and 15."""
    student, teacher = (Preconditioned(Tiny(), EDMScaling(noise_embedding="edm")) for _ in range(2))
    objective = ProgressiveObjective(
        ProgressiveConfig(4), 15, teacher=teacher.eval().requires_grad_(False), target=copy_target(student)
    )
    return student, objective


@pytest.mark.parametrize("at", [2, 3, 4, 8, 9, 10])
def test_progressive_distillation_cut_around_a_boundary(trainer, at):
    """The second phase's teacher, which is a student, comes back too: from a checkpoint, or a kill without one."""
    student, objective = distilling()
    assert [end for _, _, end in objective.phases] == [3, 9, 15]
    whole = trainer(objective, "whole", student, steps=15)
    whole.run()
    assert objective.first_teacher is None

    student, objective = distilling()
    cut = trainer(objective, "cut", student, steps=15, checkpoint_every=at)
    original, count = cut._save, []

    def save_and_die():  # as a kill would: after the checkpoint, with nothing else done
        original()
        count.append(cut.step)
        raise KeyboardInterrupt

    cut._save = save_and_die
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    assert count == [at]

    student, objective = distilling()
    resumed = trainer(objective, "cut", student, steps=15)
    resumed.run()
    assert same(dict(resumed.student.state_dict()), dict(whole.student.state_dict()))
    for decay, average in averages(whole).items():
        assert same(average, averages(resumed)[decay])
    assert same(whole.objective.state_dict(), objective.state_dict())
    assert logged(resumed, "step", "loss", "lr", "num_scales") == logged(whole, "step", "loss", "lr", "num_scales")
    assert [n for (n,) in logged(whole, "num_scales")] == [4] * 3 + [2] * 6 + [1] * 6


# ----------------------------------------------------------------------------------- what is trained beside the student


def test_the_objectives_parameters_are_trained_with_the_student(trainer):
    objective = Phased(extra=True)
    run = trainer(objective)
    (p,) = objective.extra
    seen, grads = [], []

    def keep(optimizer, *_):
        seen.append(sorted(q.numel() for group in optimizer.param_groups for q in group["params"]))
        grads.append(p.grad.clone())

    run.optimizer.optimizer.register_step_pre_hook(keep)
    start = p.detach().clone()
    run.run()
    assert seen == [[1, 2]] * STEPS
    assert all(grad.abs().min() > 0 for grad in grads)
    # By hand, with an optimizer that begins afresh at every phase.
    again = nn.Parameter(start.clone())
    for first, end in PHASES:
        fresh = build_optimizer(replace(OPTIMIZER, weight_decay=0.0), [again])
        for step in range(first, end):
            fresh.param_groups[0]["lr"] = OPTIMIZER.lr_at(step - first, end - first)
            again.grad = grads[step]
            fresh.step()
    assert torch.equal(again, p) and not torch.equal(p, start)
    assert p.grad is None  # no gradient is left for another step


def test_the_objectives_parameters_are_in_the_checkpoint(trainer, tmp_path):
    objective = Phased(extra=True)
    trainer(objective).run()
    (path,) = Path(tmp_path / "run" / "checkpoints").iterdir()
    state = torch.load(path, weights_only=True)
    assert torch.equal(state["objective"]["0"], objective.extra[0])
    assert len(state["optimizer"]["state"]) == 2
