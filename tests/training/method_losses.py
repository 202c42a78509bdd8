"""Trains by each method, and leaves the loss of every step.

method_losses.py FOLDER ENGINE:COUNT[:CHANGE][,...] STEPS PRECISION METHOD ...

The log of a run is in FOLDER/METHOD-ENGINE-COUNT[-CHANGE]. PRECISION is fp32 or fp64. CHANGE is "recomputed": blocks
compute their activations again in the backward pass; "compiled": blocks are compiled; "accumulated": two micro-batches.

The parts of each weight on two processes are whole or of a multiple of 16 numbers: AdamW rounds the rest of a part,
which fills no vector of the processor, otherwise.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from in_double import InDouble
from several import several
from small_unet import move_off_zero, small_unet

from unistep.core.parameterization import EDMScaling, Preconditioned
from unistep.data.dataset import ImageDataset
from unistep.networks.block import compile_blocks, recompute_blocks
from unistep.objectives.methods import METHODS
from unistep.objectives.protocol import ObjectiveInputs
from unistep.training.config import OptimizerConfig, TrainerConfig
from unistep.training.engines import build_engine
from unistep.training.trainer import Trainer
from unistep.workflows.runs.network import build_network

# Short trajectories, and turns of a critic and phases that lie within the steps.
FIELDS: dict[str, dict[str, Any]] = {
    "cmt": {"points": 3},
    "dmd2": {"critic_steps": 2, "gan": 0.1},
    "pd": {"start_scales": 4},
    "scd": {"tangent_warmup": 10},
    "sct": {"tangent_warmup": 10},
}


def train(folder: Path, name: str, steps: int, kind: Any, change: str, precision: str) -> None:
    """Trains a method for some steps."""
    double = precision == "fp64"
    torch.set_default_dtype(torch.float64 if double else torch.float32)  # of the weights that objectives make
    config = METHODS[name].config(**FIELDS.get(name, {}))
    flow_map = config.model().get("flow_map", False)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "layers_per_block": 1}
    scaling, generator = EDMScaling(noise_embedding="edm"), torch.Generator().manual_seed(0)
    teacher = Preconditioned(build_network(small_unet(block_out_channels=(32,), **blocks), 1), scaling)
    network = build_network(small_unet(block_out_channels=(32,), end_embedding=flow_map, **blocks), 0)
    student = Preconditioned(network, scaling, flow_map=flow_map)
    for model in (teacher, student):
        move_off_zero(model, generator)
        model.to(torch.get_default_dtype())
    if change == "recomputed":
        assert recompute_blocks(student)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    engine = build_engine(kind, accelerator)
    own = engine.own_teacher(teacher.requires_grad_(False).eval())
    objective: Any = config.build(ObjectiveInputs(student, steps, teacher=own))
    engine.freeze(own)
    if change == "compiled":
        assert compile_blocks(own)
    for critic in objective.critics().values() if change == "recomputed" else ():
        assert recompute_blocks(critic.network)
    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8, generator=generator)
    trainer = Trainer(
        folder,
        student,
        InDouble(objective) if double else objective,
        ImageDataset(images, torch.arange(40) % 3),
        # A step that moves by gradients, not by their signs.
        TrainerConfig(
            steps=steps,
            batch_size=8,
            log_every=1,
            sample_every=0,
            checkpoint_every=20,
            accumulation=2 if change == "accumulated" else 1,
            optimizer=OptimizerConfig("adamw", lr=1e-3, eps=1e-3),
        ),
        seed=0,
        accelerator=accelerator,
        use_labels=True,
        progress=False,
        compile="network" if change == "compiled" else "none",
        engine=engine,
    )
    trainer.run()
    assert bool(torch._dynamo.utils.counters["stats"]["unique_graphs"]) == (change == "compiled")


if __name__ == "__main__":
    place, runs, length, precise, *methods = sys.argv[1:]
    for method in methods or METHODS:
        for run in runs.split(","):
            name, count, change = [*run.split(":"), ""][:3]
            several(
                int(count),
                train,
                Path(place, "-".join((method, *run.split(":")))),
                *(method, int(length), name, change, precise),
            )
