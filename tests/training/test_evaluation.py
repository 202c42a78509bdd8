"""Evaluations in training: when, of which weights, and which model is kept, whatever breaks the run off."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from unistep.data.dataset import ImageDataset
from unistep.formats.checkpoint import load_checkpoint
from unistep.metrics.estimate import Estimate
from unistep.objectives.protocol import PlainObjective
from unistep.runtime.interrupt import Interrupted
from unistep.training import trainer as module
from unistep.training.config import OptimizerConfig, TrainerConfig
from unistep.training.evaluation import Evaluation
from unistep.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_accelerator_left")

STEPS = 9


class Shrink(PlainObjective):
    """Moves the one weight of the student at every step; `before(step)` is called first."""

    def __init__(self, before: Callable[[int], None] = lambda step: None) -> None:
        self.before = before

    def loss(self, student, x, class_labels, step, random, dropout_seed):
        self.before(step)
        return student(x, torch.ones(len(x)), class_labels).square().mean((1, 2, 3))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x_t, sigma, class_labels=None, *, generator=None):
        return self.weight * x_t


class Judge:
    """Gives the values in turn, or else a distance of the weight from 0.7; remembers what it saw and what was kept."""

    def __init__(self, values: Iterable[float] | None = None, keep: Callable[[], None] = lambda: None) -> None:
        self.values = None if values is None else iter(values)
        self.before_keeping = keep
        self.seen: list[float] = []
        self.kept: list[tuple[int, str, float]] = []

    def measure(self, model: nn.Module) -> Estimate:
        assert not model.training
        self.seen.append(model.weight.item())
        value = abs(self.seen[-1] - 0.7) if self.values is None else next(self.values)
        return Estimate(value, 0.1)

    def keep(self, model: nn.Module, best, seconds: float) -> None:
        self.before_keeping()
        self.kept.append((best.step, best.text, model.weight.item()))


@pytest.fixture
def trainer(tmp_path) -> Callable[..., Trainer]:
    """trainer(judge, name="run", every=2, before=..., **fields of TrainerConfig)"""
    images = torch.randint(256, (10, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def build(judge: Judge | None, name: str = "run", every: int = 2, before=lambda step: None, **fields) -> Trainer:
        short = {"steps": STEPS, "batch_size": 2, "log_every": 1, "checkpoint_every": 4, "ema_decays": (0.5,)}
        config = TrainerConfig(**(short | {"optimizer": OptimizerConfig("adamw", lr=0.05)} | fields))
        evaluation = None if judge is None else Evaluation("KD-TOY", every, judge.measure, judge.keep)
        accelerator = Accelerator(cpu=True, mixed_precision="no")
        data = ImageDataset(images)
        return Trainer(
            tmp_path / name,
            Scaled(),
            Shrink(before),
            data,
            config,
            seed=5,
            accelerator=accelerator,
            evaluation=evaluation,
        )

    return build


def logged(run: Trainer) -> list[dict[str, float]]:
    """Without what no two runs share: times."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "images_per_second", "KD-TOY/seconds")
    return [{name: v for name, v in line.items() if name not in times} for line in lines]


def newest(run: Trainer) -> dict:
    state = load_checkpoint(run.folder / "checkpoints")
    assert state is not None
    return state


def test_an_evaluation_that_a_signal_leaves_no_time_for_is_made_by_the_resumed_run(trainer):
    whole, judges = Judge(), [Judge(), Judge()]
    uninterrupted = trainer(whole, "whole")
    uninterrupted.run()
    with pytest.raises(Interrupted):  # in the step before an evaluation
        trainer(judges[0], before=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None).run()
    resumed = trainer(judges[1])
    resumed.run()
    assert [len(judge.seen) for judge in judges] == [1, len(whole.seen) - 1]
    assert judges[0].seen + judges[1].seen == whole.seen
    assert logged(resumed) == logged(uninterrupted)
    assert newest(resumed)["best"] == newest(uninterrupted)["best"]
    assert (judges[0].kept + judges[1].kept)[-1] == whole.kept[-1]


def test_the_average_is_measured_at_its_steps_and_at_the_end(trainer):
    judge, plain = Judge(), []
    run = trainer(judge)
    run.run()
    other = trainer(None, "plain", before=lambda step: plain.append(other.averaged().weight.item()))
    plain.append(other.run().weight.item())
    assert judge.seen == [plain[step] for step in (2, 4, 6, 8, 9)]  # and training is the same without it
    assert len(set(judge.seen)) == 5


def test_what_is_logged(trainer):
    run = trainer(Judge([3.0] * 5))
    run.run()
    lines = [line for line in logged(run) if "KD-TOY" in line]
    half = 1.959963984540054 * 0.1
    expected = {"KD-TOY": 3.0, "KD-TOY/low": pytest.approx(3 - half), "KD-TOY/high": pytest.approx(3 + half)}
    assert lines == [{"step": step, **expected} for step in (2, 4, 6, 8, 9)]
    assert [line["step"] for line in logged(run) if "loss" in line] == list(range(1, STEPS + 1))
    whole = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["KD-TOY/seconds"] >= 0 for line in whole if "KD-TOY" in line)


def test_the_lowest_number_is_kept(trainer, capsys):
    """The first of equal ones; what is no number is none."""
    judge = Judge([math.nan, 3.0, math.inf, 1.0, 1.0])
    run = trainer(judge)
    run.run()
    half = "0.2"
    assert [(step, text) for step, text, _ in judge.kept] == [(4, f"3 ± {half}"), (8, f"1 ± {half}")]
    assert [weight for *_, weight in judge.kept] == [judge.seen[1], judge.seen[3]]
    assert run.best is not None and (run.best.step, run.best.value) == (8, 1.0)
    said = [line for line in capsys.readouterr().err.splitlines() if "KD-TOY" in line]
    assert said[0] == f"train 2/9  KD-TOY nan ± {half}"
    assert said[1] == f"train 4/9  KD-TOY 3 ± {half} (best 3 at 4)"
    assert said[4] == f"train 9/9  KD-TOY 1 ± {half} (best 1 at 8)"


def test_the_model_is_kept_after_the_checkpoint_that_names_it(trainer):
    named = []
    judge = Judge([5.0, 4.0, 6.0, 3.0, 7.0], keep=lambda: named.append((newest(run)["step"], newest(run)["best"])))
    run = trainer(judge, checkpoint_every=100)  # an evaluation is followed by a checkpoint anyway
    run.run()
    assert [(step, best["step"], best["value"]) for step, best in named] == [(2, 2, 5.0), (4, 4, 4.0), (8, 8, 3.0)]


def test_a_kill_between_the_checkpoint_and_the_model(trainer):
    """The model is saved when the run goes on, and no evaluation before the checkpoint is made again."""

    class Killed(BaseException):
        pass

    def die() -> None:
        if judge.kept:
            raise Killed

    judge = Judge(keep=die)
    with pytest.raises(Killed):
        trainer(judge, "cut").run()
    again, whole = Judge(), Judge()
    resumed = trainer(again, "cut")
    resumed.run()
    trainer(whole, "whole").run()
    assert len(judge.kept) == 1 and again.kept[0] == whole.kept[1]
    assert judge.kept + again.kept == whole.kept
    # Training may be some steps further when it hears of a thread's end.
    before = len(whole.seen) - len(again.seen)
    assert before == 2 and judge.seen[:before] + again.seen == whole.seen


@pytest.mark.parametrize("at", range(1, STEPS))
def test_a_run_broken_off_anywhere_keeps_the_same_model(trainer, at):
    """By a kill, which leaves the last checkpoint, and by a signal, which writes one."""
    whole = Judge()
    uninterrupted = trainer(whole, "whole")
    uninterrupted.run()
    assert 2 < whole.kept[-1][0] < STEPS  # neither the first nor the last
    for name in ("kill", "signal"):

        def stop(step, name=name):
            if step == at and name == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            if step == at and name == "kill":
                raise KeyboardInterrupt

        first, second = Judge(), Judge()
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            trainer(first, name, before=stop).run()
        resumed = trainer(second, name)
        resumed.run()
        assert resumed.best == uninterrupted.best
        assert (first.kept + second.kept)[-1] == whole.kept[-1]
        assert logged(resumed) == logged(uninterrupted)
        assert first.seen + second.seen == whole.seen


def test_a_checkpoint_of_before_evaluations_is_resumed(trainer):
    with pytest.raises(Interrupted):
        trainer(None, before=lambda step: step == 4 and os.kill(os.getpid(), signal.SIGTERM)).run()
    path = Path(trainer(None).folder / "checkpoints" / "step-00000005.pt")
    state = torch.load(path, weights_only=True)
    assert state.pop("best") is None
    torch.save(state, path)
    judge = Judge()
    trainer(judge).run()
    assert len(judge.seen) == 3 and judge.kept[0][0] == 6


def test_measuring_is_no_time_of_training(trainer, monkeypatch):
    """A step takes a second here, an evaluation a hundred."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def pass_time(seconds: float) -> None:
        clock.now += seconds

    judge = Judge()
    evaluate = judge.measure
    judge.measure = lambda model: (pass_time(100), evaluate(model))[1]
    run = trainer(judge, log_every=3, before=lambda step: pass_time(1))
    run.run()
    whole = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["images_per_second"] for line in whole if "loss" in line] == pytest.approx([2.0, 2.0, 2.0])
    assert [line["KD-TOY/seconds"] for line in whole if "KD-TOY" in line] == [100] * 5
