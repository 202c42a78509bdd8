import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from unistep.core.pixels import to_float
from unistep.core.random import ImageRandom, image_seed
from unistep.data.dataset import ImageDataset
from unistep.data.order import batch_flips, batch_indices
from unistep.errors import UserError
from unistep.objectives.protocol import PlainObjective
from unistep.runtime.interrupt import Interrupted
from unistep.training.batches import Batches
from unistep.training.config import OptimizerConfig, TrainerConfig
from unistep.training.precision import pick_precision
from unistep.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_accelerator_left")


class Scaled(nn.Module):
    """The smallest student: one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x_t, sigma, class_labels=None, *, generator=None):
        y = x_t.flatten(1) @ (self.weight * torch.eye(x_t[0].numel()))  # a product, so that autocast shows
        self.dtypes.add(y.dtype)
        return y.reshape(x_t.shape)


class Denoise(PlainObjective):
    """An objective that keeps what it is given; `bend(loss, step)` may change the loss of a step."""

    def __init__(self, bend: Callable[[Tensor, int], Tensor] = lambda loss, step: loss) -> None:
        self.bend = bend
        self.seen: list[tuple[int, Tensor, Tensor | None, Tensor]] = []
        self.weights: list[float] = []
        self.modes: set[bool] = set()

    def loss(self, student, x, class_labels, step, random: ImageRandom, dropout_seed):
        noise = random.randn(*x.shape[1:])
        self.seen.append((step, x, class_labels, noise))
        y = student(x + noise, torch.ones(len(x)), class_labels)
        return self.bend((y - x).square().mean((1, 2, 3)), step)

    def after_step(self, student, step):
        self.weights.append(student.weight.item())
        self.modes.add(student.training)

    def scalars(self, step):
        return {"curriculum": float(step)}


@pytest.fixture(scope="module")
def dataset() -> ImageDataset:
    images = torch.randint(256, (10, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageDataset(images, torch.arange(10) % 3)


@pytest.fixture
def trainer(dataset, tmp_path) -> Callable[..., Trainer]:
    """trainer(objective, name="run", **fields of TrainerConfig or Trainer)"""

    def build(objective: Denoise, name: str = "run", **fields) -> Trainer:
        names = ("use_labels", "flip", "preview", "student", "deadline")
        own = {key: fields.pop(key) for key in names if key in fields}
        student = own.pop("student", None) or Scaled()
        config = TrainerConfig(**({"steps": 7, "batch_size": 4, "log_every": 1, "checkpoint_every": 3} | fields))
        accelerator = Accelerator(cpu=True, mixed_precision="no")
        return Trainer(tmp_path / name, student, objective, dataset, config, seed=5, accelerator=accelerator, **own)

    return build


def logged(trainer: Trainer) -> list[dict[str, float]]:
    return [json.loads(line) for line in (trainer.folder / "metrics.jsonl").read_text().splitlines()]


def checkpoints(trainer: Trainer) -> list[str]:
    return sorted(p.name for p in (trainer.folder / "checkpoints").glob("*"))


# ------------------------------------------------------------------------------------------- what the objective sees


@pytest.mark.parametrize("flip", [False, True])
def test_images_are_those_of_the_order(trainer, dataset, flip):
    objective = Denoise()
    trainer(objective, use_labels=True, flip=flip).run()
    mirrored = 0
    for step, x, labels, _ in objective.seen:
        indices = batch_indices(step, 4, 10, seed=5)
        expected = dataset.images[indices]
        if flip:
            flips = batch_flips(step, 4, seed=5)
            expected = torch.where(flips[:, None, None, None], expected.flip(-1), expected)
            mirrored += int(flips.sum())
        assert torch.equal(x, to_float(expected))
        assert torch.equal(labels, dataset.labels[indices])
    assert [seen[0] for seen in objective.seen] == list(range(7))
    assert (0 < mirrored < 28) == flip


def test_no_labels_unless_asked_for(trainer):
    objective = Denoise()
    trainer(objective, use_labels=False).run()
    assert all(labels is None for _, _, labels, _ in objective.seen)


@pytest.mark.parametrize("use_labels", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_loss_of_the_whole_batch_has_its_images_before_the_first_part(trainer, monkeypatch, accumulation, use_labels):
    """And no image is read twice, nor out of the order that reading ahead goes by."""
    given: list[tuple[Tensor, Tensor | None, int]] = []

    class OfAll(Denoise):
        whole_batch = True

        def among(self, x, class_labels):
            given.append((x, class_labels, len(self.seen)))

    read: list[tuple[int, int]] = []
    at = Batches.at
    monkeypatch.setattr(Batches, "at", lambda self, *part: (read.append((part[0], part[2])), at(self, *part))[1])
    objective = OfAll()
    trainer(objective, steps=3, accumulation=accumulation, use_labels=use_labels).run()
    assert read == [(step, start) for step in range(3) for start in range(0, 4, 4 // accumulation)]
    assert len(given) == (3 if accumulation > 1 else 0)  # a single part is the whole batch
    for step, (x, labels, before) in enumerate(given):
        seen = [parts for parts in objective.seen if parts[0] == step]
        assert before == step * accumulation
        assert torch.equal(x, torch.cat([part[1] for part in seen]))
        assert (labels is None) == (not use_labels)
        assert labels is None or torch.equal(labels, torch.cat([part[2] for part in seen]))


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_noise_belongs_to_the_image_of_the_step(trainer, accumulation):
    objective = Denoise()
    run = trainer(objective, steps=3, accumulation=accumulation)
    run.run()
    for step in range(3):
        noise = torch.cat([seen[3] for seen in objective.seen if seen[0] == step])
        seeds = [image_seed(image_seed(5, step), j) for j in range(4)]
        assert torch.equal(noise, ImageRandom(seeds).randn(1, 4, 4))
        if step == 0:  # the first weight is 1: all that remains is the noise
            assert logged(run)[0]["loss"] == pytest.approx(noise.square().mean().item(), rel=1e-5)


def test_student_trains_and_the_average_is_returned_in_eval_mode(trainer):
    objective = Denoise()
    run = trainer(objective)
    averaged = run.run()
    assert objective.modes == {True}
    assert run.student.training and not averaged.training
    assert not any(p.requires_grad for p in averaged.parameters())
    before = averaged.weight.item()
    with torch.no_grad():
        run.student.weight.add_(1)
        run.ema.averages[0.999]["weight"].add_(1)
    assert averaged.weight.item() == before


# ------------------------------------------------------------------------------------------------ averages and rates


def test_several_averages(trainer):
    objective = Denoise()
    decays = (0.2, 0.0, 0.999)  # the ramp passes 0.2 within the run, and stays below 0.999
    run = trainer(objective, ema_decays=decays, optimizer=OptimizerConfig("adamw", lr=0.1))
    averaged = run.run()
    for decay in decays:
        average = 1.0
        for step, weight in enumerate(objective.weights):
            rate = min(decay, (1 + step) / (10 + step))
            average = rate * average + (1 - rate) * weight
        assert run.ema.averages[decay]["weight"].item() == pytest.approx(average, rel=1e-6)
    assert averaged.weight.item() == run.ema.averages[0.2]["weight"].item()
    assert run.ema.averages[0.0]["weight"].item() == run.student.weight.item()
    assert len({run.ema.averages[decay]["weight"].item() for decay in decays}) == 3


def test_learning_rate_follows_the_schedule(trainer):
    optimizer = OptimizerConfig("adamw", lr=0.01, warmup_steps=3, decay="cosine", final_lr=0.1)
    run = trainer(Denoise(), optimizer=optimizer)
    used = []
    run.optimizer.optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
    run.run()
    assert used == [line["lr"] for line in logged(run)] == [optimizer.lr_at(step, 7) for step in range(7)]


def test_gradients_are_clipped(trainer):
    unclipped, clipped = (
        trainer(Denoise(), "a", steps=1),
        trainer(Denoise(), "b", steps=1, optimizer=OptimizerConfig(clip_grad_norm=1e-3)),
    )
    grads = []
    for run in (unclipped, clipped):
        keep = lambda optimizer, *_: grads.append(optimizer.param_groups[0]["params"][0].grad.item())  # noqa: E731
        run.optimizer.optimizer.register_step_pre_hook(keep)
        run.run()
        assert logged(run)[0]["grad_norm"] == pytest.approx(abs(grads[0]))  # the norm before clipping
    assert abs(grads[0]) > 1e-2
    assert grads[1] == pytest.approx(math.copysign(1e-3, grads[0]), rel=1e-3)


# ------------------------------------------------------------------------------------------------------------ the log


def test_a_log_line_is_the_mean_since_the_last(trainer):
    each, third = trainer(Denoise(), "each"), trainer(Denoise(), "third", log_every=3)
    each.run()
    third.run()
    losses = [line["loss"] for line in logged(each)]
    expected = [sum(losses[0:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert [line["step"] for line in logged(third)] == [3, 6, 7]
    assert [line["loss"] for line in logged(third)] == pytest.approx(expected, rel=1e-6)
    assert [line["images"] for line in logged(third)] == [12, 24, 28]
    assert [line["curriculum"] for line in logged(third)] == [2, 5, 6]


@pytest.mark.parametrize("at", [1, 3, 4])
def test_resumed_log_is_that_of_the_uninterrupted_run(trainer, at):
    whole = trainer(Denoise(), "whole", log_every=2)
    whole.run()

    def interrupt(loss, step):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with pytest.raises(Interrupted):
        trainer(Denoise(interrupt), "cut", log_every=2).run()
    resumed = trainer(Denoise(), "cut", log_every=2)
    assert torch.equal(resumed.run().weight, whole.averaged().weight)
    assert torch.equal(resumed.student.weight, whole.student.weight)
    times = {"seconds", "images_per_second"}
    lines = [[{k: v for k, v in line.items() if k not in times} for line in logged(run)] for run in (whole, resumed)]
    assert lines[0] == lines[1]


# ------------------------------------------------------------------------------------------------- stop and go on again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_after_the_step(trainer, number):
    def bend(loss, step):
        if step == 4:
            os.kill(os.getpid(), number)
        return loss

    run = trainer(Denoise(bend))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"stopped by {number.name} after step 5; the checkpoint is written") as stop:
        run.run()
    assert (stop.value.signal, stop.value.step) == (number, 5)
    assert checkpoints(run)[-1] == "step-00000005.pt"
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


@pytest.mark.parametrize("where", ["last step", "last preview"])
def test_signal_at_the_very_end_is_heard(trainer, where):
    """Else the next stage would begin."""

    def bend(loss, step):
        if where == "last step" and step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    def preview(model, path):
        if where == "last preview":
            os.kill(os.getpid(), signal.SIGTERM)

    run = trainer(Denoise(bend), preview=preview)
    with pytest.raises(Interrupted):
        run.run()
    again = Denoise()
    assert torch.equal(trainer(again).run().weight, run.averaged().weight)
    assert again.seen == []


@pytest.mark.parametrize("deadline", [0.0, 3.5, 6.0])
def test_the_time_is_up(trainer, monkeypatch, deadline):
    """After the step under way, with a checkpoint; and what goes on from there is the uninterrupted run."""
    now = [0.0]

    def bend(loss, step):
        now[0] += 1.0
        return loss

    whole = trainer(Denoise(), "whole").run()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first = trainer(Denoise(bend), deadline=deadline)
    so_far = first.run()
    assert first.step == max(1, math.ceil(deadline)) < 7
    assert checkpoints(first)[-1] == f"step-{first.step:08d}.pt"
    assert torch.equal(so_far.weight, first.averaged().weight) and not torch.equal(so_far.weight, whole.weight)
    now[0] = 0.0
    second = trainer(Denoise(bend), deadline=100.0)
    assert torch.equal(second.run().weight, whole.weight) and second.step == 7
    assert [line["step"] for line in logged(second)] == [*range(1, 8)]


def test_the_time_that_is_up_at_the_end_changes_nothing(trainer):
    whole, late = trainer(Denoise(), "whole", steps=1), trainer(Denoise(), steps=1, deadline=0.0)
    assert torch.equal(whole.run().weight, late.run().weight) and late.step == 1


def test_previews_show_the_average_at_their_steps(trainer):
    shown = []
    run = trainer(Denoise(), sample_every=3, preview=lambda model, path: shown.append((path, model.weight.item())))
    run.run()
    assert [path.relative_to(run.folder) for path, _ in shown] == [
        Path("samples", f"step-{step:08d}.png") for step in (3, 6, 7)
    ]
    assert shown[-1][1] == run.averaged().weight.item()


def test_without_previews(trainer, monkeypatch):
    """Neither the regular ones, nor an early first one, nor that of the end."""
    now = [0.0]

    def bend(loss, step):
        now[0] += 40.0
        return loss

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = trainer(Denoise(bend), sample_every=0, preview=lambda model, path: pytest.fail(f"{path} is made"))
    run.run()
    assert run.step == 7 and not (run.folder / "samples").exists()


@pytest.mark.parametrize(
    ("seconds", "sample_every", "expected"),
    [(8.0, 1000, [4, 20]), (7.0, 8, [8, 16, 20]), (0.001, 1000, [20]), (40.0, 1000, [1, 20])],
)
def test_the_first_preview_is_there_in_a_minute(trainer, monkeypatch, seconds, sample_every, expected):
    """Where the regular one would be late by the time of the steps so far; and it changes nothing of the training."""
    shown, now = [], [0.0]

    def bend(loss, step):
        now[0] += seconds
        return loss

    plain = trainer(Denoise(), "plain", steps=20).run()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    fields = {
        "steps": 20,
        "sample_every": sample_every,
        "preview": lambda model, path: shown.append(int(path.stem[5:])),
    }
    found = trainer(Denoise(bend), **fields).run()
    assert shown == expected
    assert torch.equal(found.weight, plain.weight)


def test_a_resumed_run_that_has_a_preview_makes_none_early(trainer, monkeypatch):
    shown, now = [], [0.0]

    def bend(loss, step):
        now[0] += 50
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    def preview(model, path):
        shown.append(int(path.stem[5:]))
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(path)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with pytest.raises(Interrupted):
        trainer(Denoise(bend), preview=preview).run()
    trainer(Denoise(bend), preview=preview).run()
    assert shown == [1, 7]


def test_only_the_newest_checkpoints_stay(trainer):
    run = trainer(Denoise(), checkpoint_every=1, keep_checkpoints=3)
    run.run()
    assert checkpoints(run) == [f"step-{step:08d}.pt" for step in (5, 6, 7)]


@pytest.mark.parametrize("change", ["network", "decays"])
def test_checkpoint_of_another_run_is_refused(trainer, change):
    trainer(Denoise()).run()
    fields = {"ema_decays": (0.9,)}
    if change == "network":
        student = Scaled()
        student.extra = nn.Parameter(torch.ones(3))
        fields = {"student": student}
    with pytest.raises(UserError, match="was trained with another network, other ema_decays or ema_lengths") as caught:
        trainer(Denoise(), **fields).run()
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "`steps` 0 must be at least 1"),
        ({"batch_size": -1}, "`batch_size` -1 must be at least 1"),
        ({"accumulation": 0}, "`accumulation` 0 must"),
        ({"log_every": 0}, "`log_every` 0 must"),
        ({"sample_every": -1}, "`sample_every` -1 must"),
        ({"checkpoint_every": 0}, "`checkpoint_every` 0 must"),
        ({"keep_checkpoints": 0}, "`keep_checkpoints` 0 must"),
        ({"ema_decays": ()}, "`ema_decays` .* at least one"),
        ({"ema_decays": (0.9, 1.0)}, "`ema_decays` .* in \\[0, 1\\)"),
        ({"ema_decays": (math.nan,)}, "`ema_decays` .* in \\[0, 1\\)"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**fields)


def test_batch_that_cannot_be_split(trainer):
    with pytest.raises(UserError, match="`batch_size` 4 cannot be split into 1 processes x .* 3; .* a multiple of 3"):
        trainer(Denoise(), accumulation=3)
    TrainerConfig(batch_size=12, accumulation=3).check_split(2)
    with pytest.raises(UserError, match="a multiple of 6"):
        TrainerConfig(batch_size=9, accumulation=3).check_split(2)


@pytest.mark.parametrize(
    ("amx", "avx", "expected"), [(True, False, "bf16"), (False, True, "bf16"), (False, False, "no")]
)
def test_auto_precision_is_bf16_where_it_is_fast(monkeypatch, amx, avx, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert pick_precision("auto", torch.device("cpu")) == ("bf16" if amx or avx else "no")
    assert pick_precision("fp32", torch.device("cpu")) == "no"
    assert pick_precision("bf16", torch.device("cpu")) == "bf16"


def test_fp16_needs_cuda():
    assert pick_precision("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(UserError, match="precision fp16 needs a CUDA device, this is cpu"):
        pick_precision("fp16", torch.device("cpu"))


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_networks_run_in_the_accelerators_precision(dataset, tmp_path, precision, dtype):
    """The student, and those that the objective brings; the weights stay fp32."""
    others = []

    def bend(loss, step):
        others.append((torch.eye(2) @ torch.eye(2)).dtype)
        return loss

    student, accelerator = Scaled(), Accelerator(cpu=True, mixed_precision=precision)
    config = TrainerConfig(steps=1, batch_size=2)
    Trainer(tmp_path, student, Denoise(bend), dataset, config, seed=0, accelerator=accelerator).run()
    assert student.dtypes == {dtype} and others == [dtype]
    assert student.weight.dtype == torch.float32
