"""Trains a student and a critic by DMD2 for a few steps and saves gradients and weights: critic_weights.py FILE.

Run by one or several processes.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from small_unet import move_off_zero, small_unet
from torch import nn

from unistep.core.parameterization import EDMScaling, Preconditioned
from unistep.data.dataset import ImageDataset
from unistep.objectives.dmd2 import DMD2Objective
from unistep.objectives.methods import METHODS
from unistep.objectives.protocol import ObjectiveInputs
from unistep.training.config import OptimizerConfig, TrainerConfig
from unistep.training.trainer import Trainer
from unistep.workflows.runs.network import build_network

STEPS = 4


def build(folder: Path, accelerator: Accelerator, accumulation: int = 1) -> tuple[Trainer, DMD2Objective]:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "layers_per_block": 1}
    config = small_unet(block_out_channels=(8,), **blocks)
    generator = torch.Generator().manual_seed(0)
    teacher, student = (Preconditioned(build_network(config, 0), EDMScaling()) for _ in range(2))
    for model in (teacher, student):
        move_off_zero(model, generator)
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8, generator=generator)
    method = METHODS["dmd2"].config(student_steps=2, critic_steps=1, critic_lr=2e-3, gan=0.1, critic_gan=1.0)
    objective = method.build(ObjectiveInputs(student, STEPS, teacher=teacher.requires_grad_(False)))
    assert isinstance(objective, DMD2Objective) and objective.critic.head is not None
    nn.init.normal_(objective.critic.head.weight, generator=generator)
    optimizer = OptimizerConfig("adamw", lr=1e-3, eps=1e-3)  # moves by gradients, not by their signs
    settings = TrainerConfig(steps=STEPS, batch_size=8, accumulation=accumulation, optimizer=optimizer)
    dataset = ImageDataset(images, torch.arange(20) % 3)
    trainer = Trainer(
        folder, student, objective, dataset, settings, seed=0, accelerator=accelerator, use_labels=True, progress=False
    )
    return trainer, objective


def main(file: Path) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    trainer, objective = build(file.parent / f"run-{file.stem}", accelerator)
    found: dict[str, torch.Tensor] = {}

    def record(*_: object) -> None:
        for name, network in (("student", trainer.student), ("critic", objective.critic)):
            for key, p in network.named_parameters():
                if p.grad is not None:
                    found[f"{name} gradient/{trainer.step}/{key}"] = p.grad.clone()

    trainer.optimizer.optimizer.register_step_pre_hook(record)
    trainer.run()
    for name, network in (("student", trainer.student), ("critic", objective.critic)):
        found |= {f"{name}/{key}": value for key, value in network.state_dict().items()}
    if accelerator.is_main_process:
        torch.save(found, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
