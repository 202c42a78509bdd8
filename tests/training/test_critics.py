"""A critic, a network that is trained in turn with the student: as by an optimizer of its own, also after a resume.

Student and critic have one weight each, so that both optimizers can be followed by hand.
"""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from unistep.data.dataset import ImageDataset
from unistep.objectives.protocol import Critic, PlainObjective
from unistep.runtime.interrupt import Interrupted
from unistep.training.config import OptimizerConfig, TrainerConfig
from unistep.training.optimizer import build_optimizer
from unistep.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_accelerator_left")

OPTIMIZER = OptimizerConfig("adamw", lr=0.05, warmup_steps=2, decay="cosine", weight_decay=0.1, clip_grad_norm=2.0)
OF_CRITIC = {"lr": 0.2, "betas": (0.0, 0.9), "weight_decay": 0.0, "clip_grad_norm": 0.5}
STEPS, DECAY = 9, 0.5


class Scale(nn.Module):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x, c_noise=None, class_labels=None, *, generator=None):
        return self.weight * x


class Pursuit(PlainObjective):
    """The critic follows the student, which keeps away from it; every third step trains the student."""

    def __init__(self) -> None:
        self.critic, self.after, self.stop, self.bad = Scale(2.0), [], None, -1

    def trained(self, step):
        return None if step % 3 == 2 else "critic"

    def critics(self):
        return {"critic": Critic(self.critic, OF_CRITIC)}

    def loss(self, student, x, class_labels, step, random, dropout_seed):
        if step == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        noise = (torch.inf if step == self.bad else 0.1) * random.randn(1)[:, 0]
        of_student, of_critic = student.weight, self.critic.weight
        if self.trained(step) is None:
            return -((of_student - of_critic.detach()) ** 2) + noise * of_student + of_student**2
        return (of_critic - of_student.detach()) ** 2 + noise * of_critic

    def after_step(self, student, step):
        self.after.append(step)

    def state_dict(self):
        return dict(self.critic.state_dict())

    def load_state_dict(self, state):
        self.critic.load_state_dict(state)


@pytest.fixture
def trainer(tmp_path, generator):
    images = torch.randint(256, (10, 1, 4, 4), dtype=torch.uint8, generator=generator)

    def build(objective, name="run", optimizer=OPTIMIZER, **fields) -> Trainer:
        fields = {"steps": STEPS, "batch_size": 4, "log_every": 3, "checkpoint_every": 100} | fields
        config = TrainerConfig(optimizer=optimizer, ema_decays=(DECAY,), ema_ramp="none", **fields)
        accelerator = Accelerator(cpu=True, mixed_precision="no")
        return Trainer(
            tmp_path / name, Scale(1.0), objective, ImageDataset(images), config, seed=5, accelerator=accelerator
        )

    return build


@pytest.mark.parametrize("name", ["adamw", "radam"])
def test_each_network_is_trained_as_by_an_optimizer_of_its_own(name, trainer):
    objective = Pursuit()
    run = trainer(objective, optimizer=replace(OPTIMIZER, name=name))
    config = {None: replace(OPTIMIZER, name=name), "critic": replace(OPTIMIZER, name=name, **OF_CRITIC)}
    networks = {None: Scale(1.0), "critic": Scale(2.0)}
    own = {key: build_optimizer(config[key], network.parameters()) for key, network in networks.items()}
    average = networks[None].weight.item()
    gradients: list[list[torch.Tensor | None]] = []
    weights = [run.student.weight, objective.critic.weight]
    hook = lambda *_: gradients.append([None if w.grad is None else w.grad.clone() for w in weights])  # noqa: E731
    run.optimizer.optimizer.register_step_pre_hook(hook)
    for step in range(STEPS):
        run.train_step(step)
        trained = objective.trained(step)
        of_student, of_critic = gradients[-1]
        assert (of_student is None) == (trained is not None) and (of_critic is None) == (trained is None)
        network, optimizer = networks[trained], own[trained]
        network.weight.grad = gradients[-1][0 if trained is None else 1]
        optimizer.param_groups[0]["lr"] = config[trained].lr_at(step, STEPS)
        optimizer.step()
        average = average if trained else DECAY * average + (1 - DECAY) * networks[None].weight.item()
        assert [w.item() for w in weights] == pytest.approx([n.weight.item() for n in networks.values()], rel=1e-6)
    assert max(abs(g[1].item()) for g in gradients if g[1] is not None) <= 0.5 + 1e-6  # the critic's own limit
    assert run.ema.averages[DECAY]["weight"].item() == pytest.approx(average)
    assert objective.after == [2, 5, 8]


def test_the_log_has_the_losses_of_each_network(trainer):
    objective = Pursuit()
    run = trainer(objective)
    model = run.run()
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9]
    assert all({"loss", "loss/critic", "grad_norm", "lr"} <= line.keys() for line in lines)
    assert all(line["loss/critic"] > 0 > line["loss"] - 1.5 for line in lines)
    assert [line["lr"] for line in lines] == pytest.approx([OPTIMIZER.lr_at(step, STEPS) for step in (2, 5, 8)])
    assert list(model.state_dict()) == ["weight"]  # of the student alone
    other = trainer(Pursuit(), "each", log_every=1)
    other.run()
    lines = [json.loads(line) for line in (other.folder / "metrics.jsonl").read_text().splitlines()]
    assert [{"loss", "grad_norm"} <= line.keys() for line in lines] == [step % 3 == 2 for step in range(STEPS)]
    assert all({"loss/critic", "grad_norm/critic"} & line.keys() for line in lines if line["step"] % 3)


@pytest.mark.parametrize("stop", [1, 2, 4, 6])
def test_a_resumed_run_is_the_uninterrupted_one(stop, trainer):
    def ended(run: Trainer) -> list[float]:
        moments = run.optimizer.state_dict()["state"]
        return [
            *(value.item() for one in moments.values() for value in one.values()),
            run.run().weight.item(),
            run.student.weight.item(),
            run.objective.critic.weight.item(),
        ]

    whole = trainer(Pursuit(), "whole")
    whole.run()
    cut = Pursuit()
    cut.stop = stop
    with pytest.raises(Interrupted):
        trainer(cut, "cut").run()
    resumed = trainer(Pursuit(), "cut")
    resumed.run()
    assert ended(resumed) == ended(whole)
    logs = [(run.folder / "metrics.jsonl").read_text().splitlines() for run in (whole, resumed)]
    keys = ("step", "loss", "loss/critic", "lr", "grad_norm")
    assert len({json.dumps([[json.loads(line)[key] for key in keys] for line in log]) for log in logs}) == 1


def test_a_step_of_the_critic_that_is_not_finite_is_skipped(trainer):
    objective, other = Pursuit(), Pursuit()
    objective.bad = 4
    run, whole = trainer(objective, "bad"), trainer(other, "whole")
    for one in (run, whole):
        for step in range(4):
            one.train_step(step)
    before = objective.critic.weight.item(), run.student.weight.item()
    run.train_step(4)
    assert (objective.critic.weight.item(), run.student.weight.item()) == before
    assert run.guard.skipped == 1 and whole.guard.skipped == 0


def test_a_run_goes_back_to_its_beginning_with_the_critic(trainer):
    objective = Pursuit()
    objective.bad = 2
    run = trainer(objective, max_skipped=1, max_rollbacks=1)
    own = objective.loss

    def loss(student, x, labels, step, random, seed):
        losses = own(student, x, labels, step, random, seed)
        objective.bad = -1 if step == 2 else objective.bad
        return losses

    objective.loss = loss
    run.run()
    halved = replace(OPTIMIZER, lr=OPTIMIZER.lr / 2), {**OF_CRITIC, "lr": OF_CRITIC["lr"] / 2}
    fresh = Pursuit()
    fresh.critics = lambda: {"critic": Critic(fresh.critic, halved[1])}
    straight = trainer(fresh, "straight", optimizer=halved[0])
    straight.run()
    assert run.guard.rollbacks == 1
    assert objective.critic.weight.item() == pytest.approx(fresh.critic.weight.item(), rel=1e-6)
    assert run.student.weight.item() == pytest.approx(straight.student.weight.item(), rel=1e-6)


def test_a_checkpoint_is_not_written_of_a_critic_that_is_no_number(trainer):
    objective = Pursuit()
    run = trainer(objective)
    assert run._finite_weights()
    with torch.no_grad():
        objective.critic.weight.fill_(torch.nan)
    assert not run._finite_weights()
