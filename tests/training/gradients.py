"""Takes one training step and saves the gradients; run by one or several processes: gradients.py ACCUMULATION FILE."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from small_unet import move_off_zero, small_unet
from torch import Tensor, nn

from unistep.core.parameterization import ConsistencyScaling, Preconditioned
from unistep.core.random import ImageRandom
from unistep.data.dataset import ImageDataset
from unistep.objectives.consistency import ConsistencyConfig, ConsistencyObjective
from unistep.objectives.protocol import Student
from unistep.objectives.target import copy_target
from unistep.training.config import OptimizerConfig, TrainerConfig
from unistep.training.trainer import Trainer
from unistep.workflows.runs.network import build_network


class Weighted(ConsistencyObjective):
    """With a learned weight of each image, which is trained beside the student and is not wrapped as that is."""

    weight = nn.Parameter(torch.tensor([0.1, -0.2]))

    def loss(
        self,
        student: Student,
        x: Tensor,
        class_labels: Tensor | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int,
    ) -> Tensor:
        losses = super().loss(student, x, class_labels, step, random, dropout_seed)
        features = torch.stack([x.mean((1, 2, 3)), x.square().mean((1, 2, 3))], dim=1)
        return losses * (features @ self.weight).exp()

    def parameters(self) -> list[nn.Parameter]:
        return [self.weight]


def main(accumulation: int, file: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    student = Preconditioned(build_network(small_unet(), 0), ConsistencyScaling())
    move_off_zero(student, generator)
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8, generator=generator)
    dataset = ImageDataset(images, torch.arange(20) % 3)
    objective = Weighted(ConsistencyConfig(target="ema"), 10, target=copy_target(student))
    trainer = Trainer(
        file.parent / f"run-{file.stem}",
        student,
        objective,
        dataset,
        TrainerConfig(steps=1, batch_size=8, accumulation=accumulation, optimizer=OptimizerConfig(lr=1e-3)),
        seed=0,
        accelerator=Accelerator(cpu=True, mixed_precision="no"),
        use_labels=True,
        flip=True,
    )
    gradients: dict[str, torch.Tensor] = {}

    def record(*_: object) -> None:
        gradients.update({name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None})
        assert objective.weight.grad is not None
        gradients["objective"] = objective.weight.grad.clone()

    trainer.optimizer.optimizer.register_step_pre_hook(record)
    trainer.run()
    if trainer.accelerator.is_main_process:
        torch.save(gradients, file)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
