"""Steps whose loss or gradient is not finite: skipped, counted, and too many of them taken back."""

import contextlib
import json
import logging
import math
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from unistep.data.dataset import ImageDataset
from unistep.errors import UserError
from unistep.formats.checkpoint import checkpoint_steps
from unistep.objectives.protocol import PlainObjective
from unistep.runtime.interrupt import Interrupted
from unistep.training import saving as module
from unistep.training.config import OptimizerConfig, TrainerConfig
from unistep.training.guard import Diverged, Guard
from unistep.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_accelerator_left")

STEPS = 12


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x_t, sigma, class_labels=None, *, generator=None):
        return self.weight * x_t


class Bent(PlainObjective):
    """Pulls the weight to 0; `bend(loss, step, calls)` may change the loss, `calls` counts those of the step so far."""

    def __init__(self, bend: Callable[[Tensor, int, int], Tensor] = lambda loss, step, calls: loss) -> None:
        self.bend = bend
        self.steps: list[int] = []
        self.average = torch.ones(())
        self.images: dict[int, Tensor] = {}

    def loss(self, student, x, class_labels, step, random, dropout_seed):
        calls = self.steps.count(step)
        self.steps.append(step)
        self.images[step] = x
        return self.bend(student(x, torch.ones(len(x))).square().mean((1, 2, 3)), step, calls)

    def after_step(self, student, step):
        self.average = 0.5 * self.average + 0.5 * student.weight.detach()

    def state_dict(self):
        return {"average": self.average}

    def load_state_dict(self, state):
        self.average = state["average"].clone()


@pytest.fixture
def trainer(tmp_path) -> Callable[..., Trainer]:
    """trainer(bend, name="run", evaluation=None, **fields of TrainerConfig)"""
    images = torch.randint(256, (30, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def build(bend=None, name: str = "run", **fields) -> Trainer:
        short = {"steps": STEPS, "batch_size": 2, "log_every": 1, "checkpoint_every": 3, "ema_decays": (0.5, 0.9)}
        short |= {"optimizer": OptimizerConfig("adamw", lr=0.05), "max_skipped": 2}
        config = TrainerConfig(**(short | fields))
        accelerator = Accelerator(cpu=True, mixed_precision="no")
        objective = Bent() if bend is None else Bent(bend)
        return Trainer(
            tmp_path / name, Scaled(), objective, ImageDataset(images), config, seed=5, accelerator=accelerator
        )

    return build


def nan_at(*steps: int, times: float = math.inf, kind: float = math.nan) -> Callable[[Tensor, int, int], Tensor]:
    """Makes the loss of these steps no number, the first so many times that they are made."""
    return lambda loss, step, calls: loss * kind if step in steps and calls < times else loss


def root_at(step: int) -> Callable[[Tensor, int, int], Tensor]:
    """The loss of the step is finite, its gradient is not."""
    return lambda loss, now, calls: loss + (loss * 0).sqrt() * 0 if now == step else loss


def numbers(run: Trainer) -> dict[str, Tensor]:
    """All that training changes."""
    found = {"weight": run.student.weight.detach(), "target": run.objective.average}  # pyright: ignore
    found |= {f"ema {decay}": average["weight"] for decay, average in run.ema.averages.items()}
    state = run.optimizer.state_dict()["state"].get(0, {})
    return {name: value.clone() for name, value in found.items()} | {
        f"optimizer {name}": torch.as_tensor(value).clone() for name, value in state.items()
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logged(run: Trainer) -> list[dict[str, float]]:
    """Without what no two runs share: times."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in line.items() if name not in ("seconds", "images_per_second")} for line in lines]


# ---------------------------------------------------------------------------------------------------------- one step


@pytest.mark.parametrize("bend", [nan_at(5), nan_at(5, kind=math.inf), nan_at(5, kind=-math.inf), root_at(5)])
def test_a_step_that_is_no_number_changes_nothing(trainer, bend):
    """Neither weights nor averages, optimizer or target; the next step has the next images."""
    run = trainer(bend)
    seen: dict[int, dict[str, Tensor]] = {}
    train_step = run.train_step

    def watched(step: int):
        seen[step] = numbers(run)
        return train_step(step)

    run.train_step = watched
    run.run()
    assert same(seen[5], seen[6]) and not same(seen[4], seen[5]) and not same(seen[6], seen[7])
    assert run.objective.steps == list(range(STEPS))  # pyright: ignore
    plain = trainer(name="plain")
    plain.run()
    images = run.objective.images, plain.objective.images  # pyright: ignore
    assert all(torch.equal(images[0][step], images[1][step]) for step in range(STEPS))
    assert run.guard.skipped == 1 and run.guard.rollbacks == 0


def test_skipped_steps_are_counted_and_told(trainer, caplog):
    run = trainer(nan_at(2, 5, 6, 9), max_skipped=3, log_every=2)
    run.run()
    lines = logged(run)
    assert [line.get("skipped") for line in lines] == [None, 1, 2, 3, 4, 4]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    starts = ["train: the loss of step 3 is not finite; the step is skipped", "train: the loss of step 6", "train: the"]
    assert all(message.startswith(start) for message, start in zip(caplog.messages, starts, strict=False))
    assert caplog.messages[-1] == "train: 4 steps were skipped, of 12"


def test_a_line_of_skipped_steps_alone_has_no_loss(trainer, capsys):
    run = trainer(nan_at(2, 3), max_skipped=5, log_every=2)
    run.run()
    assert ["loss" in line for line in logged(run)] == [True, False, True, True, True, True]
    plain = trainer(name="plain", log_every=2)
    plain.run()
    assert logged(run)[0] == logged(plain)[0]


def test_a_healthy_run_has_no_trace_of_it(trainer, caplog):
    run = trainer()
    run.run()
    assert all(line.keys() == {"step", "loss", "lr", "images", "grad_norm"} for line in logged(run))
    assert caplog.messages == []


# ---------------------------------------------------------------------------------------------------------- going back


def test_too_many_go_back_with_half_the_learning_rate(trainer, caplog):
    run = trainer(nan_at(7, 8, times=1))
    run.run()
    assert run.objective.steps == [*range(9), *range(6, STEPS)]  # pyright: ignore
    assert [line["lr"] for line in logged(run)] == [0.05] * 6 + [0.025] * 7
    assert logged(run)[6] == {"step": 6, "lr": 0.025, "diverged_at": 9, "skipped": 2, "rollbacks": 1}
    assert [line["step"] for line in logged(run)] == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12]
    wanted = "at step 9 2 steps in a row were not finite; it goes back to step 6 with the learning rate 0.025 (1 of 3"
    assert wanted in " ".join(caplog.messages)


def test_going_back_restores_all(trainer):
    """As if the run had been stopped there, and gone on with half the rate."""
    run = trainer(nan_at(7, 8, times=1))
    run.run()
    with pytest.raises(Interrupted):
        trainer(
            lambda loss, step, calls: os.kill(os.getpid(), signal.SIGTERM) or loss if step == 5 else loss, "b"
        ).run()
    other = trainer(name="b", optimizer=OptimizerConfig("adamw", lr=0.025))
    other.run()
    assert same(numbers(run), numbers(other))


def test_before_the_first_checkpoint_it_goes_back_to_the_beginning(trainer):
    run = trainer(nan_at(1, 2, times=1), rollback_lr=0.1)
    run.run()
    other = trainer(name="b", optimizer=OptimizerConfig("adamw", lr=0.005))
    other.run()
    assert same(numbers(run), numbers(other))
    assert run.objective.steps == [0, 1, 2, *range(STEPS)]  # pyright: ignore


def test_a_checkpoint_of_the_wrong_way_is_not_gone_back_to(trainer):
    """One that was written after a skipped step; it is not kept either."""
    run = trainer(nan_at(7, 8, 9, 10, times=1), max_skipped=4, keep_checkpoints=2, checkpoint_every=2)
    run.run()
    assert run.objective.steps == [*range(11), *range(6, STEPS)]  # pyright: ignore
    assert checkpoint_steps(run.folder / "checkpoints") == [10, 12]


@pytest.mark.parametrize("skipped", [range(STEPS), range(3, STEPS), range(7, STEPS)])
def test_it_goes_back_three_times_and_stops(trainer, skipped):
    run = trainer(nan_at(*skipped), max_skipped=3)
    with pytest.raises(Diverged, match=r"^train diverged by step \d+: .* rate 0.00625; go on with a lower") as caught:
        run.run()
    assert "\n" not in str(caught.value) and caught.value.lr == 1e-4
    at = skipped.start // 3 * 3
    assert run.objective.steps[skipped.start + 3 :] == [*range(at, skipped.start + 3)] * 3  # pyright: ignore
    assert all(bool(value.isfinite().all()) for value in numbers(run).values())
    # Once more, it stops where it did.
    with pytest.raises(Diverged):
        trainer(nan_at(*skipped), max_skipped=3).run()
    # With another rate it begins to count anew.
    better = trainer(nan_at(skipped.start, times=1), optimizer=OptimizerConfig("adamw", lr=0.001))
    better.run()
    assert logged(better)[-1]["lr"] == 0.001


@pytest.mark.parametrize(("allowed", "times"), [(0, 1), (1, 2), (5, 6)])
def test_how_often_is_configurable(trainer, allowed, times):
    run = trainer(nan_at(4, 5), max_rollbacks=allowed)
    with pytest.raises(Diverged):
        run.run()
    assert run.objective.steps.count(5) == times  # pyright: ignore


def test_a_stage_without_a_single_step_is_no_success(trainer):
    run = trainer(nan_at(*range(5)), steps=5, max_skipped=20)
    with pytest.raises(Diverged):
        run.run()
    assert checkpoint_steps(run.folder / "checkpoints") == []


def test_weights_that_overflow_are_not_saved(trainer):
    """Their loss was finite, and so was the gradient."""
    run = trainer(checkpoint_every=1, max_rollbacks=1)

    def overflow(*_):
        with torch.no_grad():
            run.student.weight.fill_(math.inf)

    run.optimizer.optimizer.register_step_post_hook(overflow)
    with pytest.raises(Diverged):
        run.run()
    assert checkpoint_steps(run.folder / "checkpoints") == []


@pytest.mark.parametrize(
    "fields",
    [{"max_skipped": 0}, {"rollback_lr": 0}, {"rollback_lr": 1.5}, {"rollback_lr": math.nan}] + [{"max_rollbacks": -1}],
)
def test_config_refuses_nonsense(fields):
    with pytest.raises(UserError, match=f"`{next(iter(fields))}`"):
        TrainerConfig(**fields)


# -------------------------------------------------------------------------------------------------------------- killed


def killed_at(steps: Iterable[int], monkeypatch) -> None:
    """Kills the run after the checkpoints of these steps, each once; KeyboardInterrupt stands for the kill."""
    left, save = list(steps), module.save_checkpoint

    def stopped(folder: Path, step: int, *arguments):
        save(folder, step, *arguments)
        if step in left:
            left.remove(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_checkpoint", stopped)


@pytest.mark.parametrize("bad", [(7, 8, 9), (1, 2, 3), (4, 7, 8, 9), (9, 10, 11)])
@pytest.mark.parametrize("kills", [(3,), (8,), (6, 6, 8), (9, 10), (2, 4, 6, 8, 10)])
def test_killed_and_resumed_it_ends_in_the_same_numbers(trainer, monkeypatch, bad, kills):
    """Among skipped steps, before and after it goes back: a step is no number as long as the rate is above 0.02."""
    fields = {"max_skipped": 3, "checkpoint_every": 2, "log_every": 3}

    def bend(of: list[Trainer]):
        def bent(loss, step, calls):
            (group,) = of[-1].optimizer.param_groups
            return loss * math.nan if step in bad and group["lr"] > 0.02 else loss

        return bent

    runs: list[Trainer] = []
    runs.append(trainer(bend(runs), "whole", **fields))
    runs[-1].run()
    whole = runs[-1]
    assert whole.guard.rollbacks == 2
    killed_at(kills, monkeypatch)
    for _ in range(len(kills) + 1):
        runs.append(trainer(bend(runs), "cut", **fields))
        try:
            runs[-1].run()
            break
        except KeyboardInterrupt:
            continue
    assert same(numbers(whole), numbers(runs[-1]))
    assert runs[-1].guard == whole.guard and logged(runs[-1]) == logged(whole)


def test_counts_of_a_new_rate():
    guard = Guard(lr=1.0).after(False).after(False).rolled_back(0.5)
    assert (guard.lr_factor, guard.rollbacks, guard.skipped, guard.in_a_row) == (0.5, 1, 2, 0)
    assert guard.with_lr(1.0) is guard
    assert guard.with_lr(0.1) == Guard(skipped=2, lr=0.1)
    assert Guard(**guard.state_dict()) == guard
    assert Guard().with_lr(0.1).lr == 0.1


def test_images_that_are_no_numbers_do_not_end_the_run(trainer, caplog, monkeypatch):
    caplog.set_level(logging.WARNING, "unistep")
    run = trainer(sample_every=4)

    def preview(model, path):
        raise UserError("the images are not finite; give fp32")

    run.previews = replace(run.previews, make=preview)
    run.run()
    assert [m for m in caplog.messages if "the images are not finite" in m][0].startswith(
        "train: no samples of step 4:"
    )
    assert checkpoint_steps(run.folder / "checkpoints")[-1] == STEPS


def test_the_scale_of_fp16_follows(trainer, caplog):
    """A gradient that overflows lowers it without a word, and is a skipped step."""
    run = trainer(lambda loss, step, calls: loss * 3e36 if step == 5 and calls == 0 else loss)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)  # pyright: ignore
    run.accelerator.scaler = scaler
    run.optimizer = AcceleratedOptimizer(run.optimizer.optimizer, scaler=scaler)
    run.accelerator._optimizers = [run.optimizer]
    run.accelerator.native_amp = True
    run.accelerator.state._mixed_precision = "fp16"
    run.accelerator.autocast = contextlib.nullcontext
    before: list[dict[str, Tensor]] = []
    train_step = run.train_step

    def watched(step: int):
        before.append(numbers(run))
        return train_step(step)

    run.train_step = watched
    run.run()
    assert same(before[5], before[6]) and not same(before[6], before[7])
    assert scaler.get_scale() == 512.0 and run.guard.skipped == 1
    assert [message for message in caplog.messages if "step 6" in message] == []
