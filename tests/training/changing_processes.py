"""Trains with one process, and with others: changing_processes.py FOLDER METHOD ENGINE:COUNT:END ...

Writes loss curve and images of each step to FOLDER/one and FOLDER/many.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from several import several
from small_unet import move_off_zero, small_unet

from unistep.core.parameterization import ConsistencyScaling, Preconditioned
from unistep.data.dataset import ImageDataset
from unistep.objectives.methods import METHODS
from unistep.objectives.protocol import ObjectiveInputs
from unistep.runtime.interrupt import Interrupted
from unistep.training.config import OptimizerConfig, TrainerConfig
from unistep.training.engines import build_engine
from unistep.training.trainer import Trainer
from unistep.workflows.runs.network import build_network

STEPS, BATCH, IMAGES = 16, 12, 48


def teacher(x_t: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None, /) -> torch.Tensor:
    return x_t / (1 + sigma**2)[:, None, None, None]


def train(folder: Path, method: str, kind: Any, end: int) -> None:
    """Trains a method until `end` steps are done."""
    config = METHODS[method].config()
    student = Preconditioned(build_network(small_unet(block_out_channels=(8, 8)), 0), ConsistencyScaling())
    move_off_zero(student, torch.Generator().manual_seed(0))
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    engine = build_engine(kind, accelerator)
    objective = config.build(ObjectiveInputs(student, STEPS, teacher=teacher))
    loss = objective.loss
    # Image i has the brightness i.
    images = torch.arange(IMAGES, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()

    def recorded(student, x, labels, step, random, seed):
        seen = ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        with (folder / f"seen-{accelerator.process_index}").open("a") as file:
            file.write(json.dumps([step, seen]) + "\n")
        if step == end - 1 < STEPS - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(student, x, labels, step, random, seed)

    objective.loss = recorded  # pyright: ignore
    trainer = Trainer(
        folder,
        student,
        objective,
        ImageDataset(images, torch.arange(IMAGES) % 3),
        TrainerConfig(
            steps=STEPS,
            batch_size=BATCH,
            log_every=4,
            sample_every=0,
            ema_lengths=(0.1,),
            optimizer=OptimizerConfig("adamw", lr=1e-3, eps=1e-3),
        ),
        seed=0,
        accelerator=accelerator,
        use_labels=True,
        flip=True,
        progress=False,
        engine=engine,
    )
    with suppress(Interrupted):
        trainer.run()


if __name__ == "__main__":
    place, method, *parts = sys.argv[1:]
    for name, runs in (("one", [f"ddp:1:{STEPS}"]), ("many", parts)):
        run = Path(place, name)
        run.mkdir()
        for part in runs:
            kind, count, last = part.split(":")
            several(int(count), train, run, method, kind, int(last))
