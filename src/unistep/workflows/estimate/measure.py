"""The time of a training step on this device, measured with random weights on random images.

What is measured is as much of a step as time and memory allow:

    the whole step           the trainer's own, with optimizer and averages
    forward and backward     of the objective, where optimizer and averages would not fit into the memory
    one evaluation           of the network, scaled by the FLOPs of a step, where a step would take too long

The micro-batch is as large as the recipe's, or smaller, so that a step takes few seconds and fits into the memory. A
step of a larger batch is so many micro-batches, and one update of the weights.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from unistep.core.parameterization import Preconditioned
from unistep.core.pixels import to_float
from unistep.core.random import ImageRandom
from unistep.data import ImageDataset
from unistep.objectives.protocol import Objective
from unistep.training.config import TrainerConfig
from unistep.training.engines import Engine
from unistep.training.trainer import Trainer

What = Literal["whole step", "forward and backward", "one evaluation"]

# Parts of a step's memory that forward and backward pass do without.
OPTIMIZER, AVERAGES = "optimizer", "averages"

_STEP_SECONDS = 3.0  # a measured step should not take longer
_CPU_MEMORY = 6 << 30  # that a measurement takes at most where it shares the memory with others
_IMAGES = 256
KERNELS = 0.25
"""Memory that kernels need for themselves, as a share of what the backward pass keeps."""

_LOOKED_AT = 10_000  # steps whose turns are counted


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step: `parts` that stay, and what the backward pass keeps of a micro-batch."""

    parts: dict[str, int]
    kept: int
    """Bytes that the backward pass keeps whatever the micro-batch."""
    per_image: int
    """Bytes that it keeps of every image."""
    copy: int = 0
    """Bytes of main memory of the copy that a checkpoint is written from, while training goes on."""

    def activations(self, micro_batch: int) -> int:
        """Bytes that the backward pass keeps."""
        return self.kept + self.per_image * micro_batch

    def total(self, micro_batch: int) -> int:
        """Bytes of a step whose forward and backward pass are of `micro_batch` images."""
        return sum(self.parts.values()) + self.activations(micro_batch)


@dataclass(frozen=True)
class Parts:
    """A stage that is built; `others` are the networks beside the student."""

    student: Preconditioned
    objective: Objective
    others: dict[str, nn.Module]


@dataclass(frozen=True)
class Measuring:
    """Limits of a measurement of time, and the counts that it goes by.

    Args:
        steps: number of steps to be taken.
        seconds: time that all steps may take, about.
        flops: FLOPs of an image in a training step.
        evaluation: FLOPs of one network evaluation.
        memory: memory of a step.
    """

    steps: int
    seconds: float
    flops: int
    evaluation: int
    memory: Memory


@dataclass(frozen=True)
class Measurement:
    """Medians of `steps` steps.

    Args:
        what: name of the part that was measured.
        steps: number of steps.
        micro_batch: number of images of each step.
        seconds: seconds of the forward and backward passes of a micro-batch.
        update: seconds of optimizer and averages, once a step; 0 where they were not measured.
    """

    what: What
    steps: int
    micro_batch: int
    seconds: float
    update: float

    def images_per_second(self, batch: int) -> float:
        """Of steps of `batch` images."""
        return batch / (self.seconds * batch / self.micro_batch + self.update)


Step = Callable[[int, int], tuple[float, float]]
"""(micro-batch, number of the step) -> seconds of forward and backward, and of the update."""


def turns(objective: Objective, steps: int, number: int) -> list[tuple[int, float]]:
    """A step that trains each of the networks that are trained in turn, and the share of the steps that do.

    Args:
        objective: objective of a stage.
        steps: length of the stage.
        number: step that is taken where the student alone is trained.
    """
    if not objective.critics():
        return [(min(number, steps - 1), 1.0)]
    trained = [objective.trained(step) for step in range(min(steps, _LOOKED_AT))]
    return [(trained.index(name), count / len(trained)) for name, count in Counter(trained).items()]


def measure(
    build: Callable[[bool], Parts],
    stage: TrainerConfig,
    dataset: ImageDataset,
    measuring: Measuring,
    accelerator: Accelerator,
) -> Measurement:
    """Takes steps of a stage.

    Args:
        build: function that makes the stage with random weights on the CPU; with True the student alone.
        stage: lengths and rates of the stage.
        dataset: images of the right shape.
        measuring: limits of the measurement.
        accelerator: device and precision.
    """
    device, memory = accelerator.device, measuring.memory
    limit = 0.7 * free_memory(device)
    if device.type != "cuda":
        limit = min(limit, _CPU_MEMORY)
    unneeded = memory.parts[OPTIMIZER] + memory.parts[AVERAGES]

    def fits(whole: bool, batch: int) -> bool:
        return memory.total(batch) - (0 if whole else unneeded) + KERNELS * memory.activations(batch) <= limit

    possible = fits(False, 1)
    parts: Parts = build(not possible)
    _to_device(parts, device)
    evaluation = evaluation_seconds(parts.student, dataset, accelerator)
    expected = evaluation * measuring.flops / measuring.evaluation
    left = measuring.seconds - evaluation
    if not possible or expected > left:
        return Measurement("one evaluation", 1, 1, expected, 0.0)
    whole = fits(True, 1)
    step = (whole_step if whole else passes_alone)(parts, stage, dataset, accelerator)
    largest = stage.batch_size // stage.accumulation
    largest = max(b for b in range(1, largest + 1) if b == 1 or fits(whole, b))
    return Measurement(
        "whole step" if whole else "forward and backward", *_repeat(step, largest, measuring.steps, left)
    )


def evaluation_seconds(student: nn.Module, dataset: ImageDataset, accelerator: Accelerator) -> float:
    """Seconds of one evaluation of one image.

    Args:
        student: network.
        dataset: images of the right shape.
        accelerator: device and precision.
    """
    device = accelerator.device
    x, labels = dataset.batch(torch.zeros(1, dtype=torch.int64))
    labels = None if labels is None else labels.to(device)
    student.eval()
    with torch.no_grad(), accelerator.autocast():
        start = now(device)
        student(to_float(x.to(device)), torch.ones(1, device=device), labels)
        seconds = now(device) - start
    student.train()
    return seconds


def _repeat(step: Step, largest: int, steps: int, seconds: float) -> tuple[int, int, float, float]:
    """Finds the micro-batch that takes a good time, and takes steps of it: (steps, micro-batch, seconds, update)."""
    began, number = time.perf_counter(), 0

    def take(batch: int) -> tuple[float, float]:
        nonlocal number
        number += 1
        return step(batch, number - 1)

    goal = min(_STEP_SECONDS, seconds / (steps + 3))
    first = last = take(1)
    if sum(first) < goal:
        last = take(1)  # the first one also loaded libraries
    batch = 1
    # By little at a time: small batches tell little of larger ones.
    while batch < largest and (grown := min(largest, 4 * batch, int(batch * goal / max(sum(last), 1e-9)))) > batch:
        batch = grown
        take(batch)
        last = take(batch)
    left = seconds - (time.perf_counter() - began)
    count = min(steps, int(left / max(sum(last), 1e-9)))
    taken = [take(batch) for _ in range(count)] or [last]
    passes, updates = zip(*taken, strict=True)
    return len(taken), batch, statistics.median(passes), statistics.median(updates)


def whole_step(
    parts: Parts, stage: TrainerConfig, dataset: ImageDataset, accelerator: Accelerator, engine: Engine | None = None
) -> Step:
    """The trainer's own step; with several processes all take it together, each with a micro-batch.

    Args:
        parts: networks and objective.
        stage: lengths and rates of the stage.
        dataset: images of the right shape.
        accelerator: device and precision.
        engine: way in which the processes share the networks; None is whole networks.
    """
    processes = accelerator.num_processes
    config = replace(stage, batch_size=processes, accumulation=1)
    trainer = Trainer(
        Path(),  # nothing is written before `run`
        parts.student,
        parts.objective,
        dataset,
        config,
        seed=0,
        accelerator=accelerator,
        use_labels=dataset.labels is not None,
        engine=engine,
    )
    updates: list[float] = []

    def begin_update(*_: object) -> None:
        updates.append(now(accelerator.device))

    wrapped: Any = trainer.optimizer
    wrapped.optimizer.register_step_pre_hook(begin_update)

    def step(batch: int, number: int) -> tuple[float, float]:
        trainer.config = replace(config, batch_size=batch * processes)
        passes = update = 0.0
        for at, share in turns(parts.objective, stage.steps, number):
            updates.clear()
            start = now(accelerator.device)
            trainer.train_step(at)
            end = now(accelerator.device)
            middle = updates[0] if updates else end  # fp16 skips the update where gradients overflow
            passes, update = passes + share * (middle - start), update + share * (end - middle)
        return passes, update

    return step


def passes_alone(parts: Parts, stage: TrainerConfig, dataset: ImageDataset, accelerator: Accelerator) -> Step:
    """Forward and backward pass alone, of this process; before the networks are shared with others.

    Args:
        parts: networks and objective.
        stage: lengths and rates of the stage.
        dataset: images of the right shape.
        accelerator: device and precision.
    """
    device = accelerator.device

    def step(batch: int, number: int) -> tuple[float, float]:
        places = turns(parts.objective, stage.steps, number)
        return sum(share * one(batch, at) for at, share in places), 0.0

    def one(batch: int, at: int) -> float:
        start = now(device)
        x, labels = dataset.batch(torch.arange(batch) % len(dataset))
        labels = None if labels is None else labels.to(device)
        random = ImageRandom(list(range(batch)), device)
        with accelerator.autocast():
            losses = parts.objective.loss(parts.student, to_float(x.to(device)), labels, at, random, 0)
        losses.float().mean().backward()
        parts.student.zero_grad()
        for critic in parts.objective.critics().values():
            critic.network.zero_grad()
        return now(device) - start

    return step


def random_images(shape: tuple[int, int, int], classes: int, number: int = _IMAGES) -> ImageDataset:
    """Noise of the right shape, with a class each where there are classes.

    Args:
        shape: channels, height and width.
        classes: number of classes; 0 makes images without labels.
        number: number of images.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (number, *shape), dtype=torch.uint8, generator=generator)
    return ImageDataset(pixels, torch.arange(number) % classes if classes else None)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def now(device: torch.device) -> float:
    """Seconds, when all that the device was given is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _to_device(parts: Parts, device: torch.device) -> None:
    parts.student.to(device)
    for network in parts.others.values():
        network.to(device)
