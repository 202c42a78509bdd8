"""Takes one training step and saves the gradients; run by one or several processes: gradients.py ACCUMULATION FILE."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from unistep.build import build_network
from unistep.core.parameterization import ConsistencyScaling, Preconditioned
from unistep.data.dataset import ImageDataset
from unistep.networks.adm import UNetConfig
from unistep.objectives.consistency import ConsistencyConfig, ConsistencyObjective, copy_target
from unistep.training.optimizer import OptimizerConfig
from unistep.training.trainer import Trainer, TrainerConfig


def main(accumulation: int, file: Path) -> None:
    config = UNetConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attn_norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=3,
    )
    generator = torch.Generator().manual_seed(0)
    student = Preconditioned(build_network(config, 0), ConsistencyScaling())
    with torch.no_grad():  # the zero-initialised layers too: else most gradients are zero
        for p in student.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8, generator=generator)
    dataset = ImageDataset(images, torch.arange(20) % 3)
    objective = ConsistencyObjective(ConsistencyConfig(target="ema"), 10, target=copy_target(student))
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

    trainer.optimizer.optimizer.register_step_pre_hook(record)
    trainer.run()
    if trainer.accelerator.is_main_process:
        torch.save(gradients, file)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
