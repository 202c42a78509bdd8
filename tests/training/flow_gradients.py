"""Takes one step of each method in METHODS of flow maps and new stages, and saves the gradients by method and weight.

Run by one or several processes: flow_gradients.py FILE.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from small_unet import move_off_zero, small_unet

from unistep.core.parameterization import EDMScaling, Preconditioned
from unistep.data.dataset import ImageDataset
from unistep.objectives.methods import METHODS
from unistep.objectives.protocol import ObjectiveInputs
from unistep.training.config import OptimizerConfig, TrainerConfig
from unistep.training.trainer import Trainer
from unistep.workflows.runs.network import build_network

NAMES = ("tcm", "cmt", "meanflow", "imf", "soflow", "facm")


def teacher(x_t: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None, /) -> torch.Tensor:
    return x_t / (1 + sigma**2)[:, None, None, None]


def gradients_of(name: str, file: Path, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    flow_map = METHODS[name].config().model().get("flow_map", False)
    config = small_unet(end_embedding=flow_map)
    generator = torch.Generator().manual_seed(0)
    student = Preconditioned(build_network(config, 0), EDMScaling(noise_embedding="edm"), flow_map=flow_map)
    move_off_zero(student, generator)
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8, generator=generator)
    dataset = ImageDataset(images, torch.arange(20) % 3)
    config = METHODS[name].config(**({"points": 3} if name == "cmt" else {}))
    objective = config.build(ObjectiveInputs(student, 1, teacher=teacher))
    trainer = Trainer(
        file.parent / f"run-{file.stem}-{name}",
        student,
        objective,
        dataset,
        TrainerConfig(steps=1, batch_size=8, optimizer=OptimizerConfig(lr=1e-3)),
        seed=0,
        accelerator=accelerator,
        use_labels=True,
    )
    gradients: dict[str, torch.Tensor] = {}

    def record(*_: object) -> None:
        gradients.update({name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None})

    trainer.optimizer.optimizer.register_step_pre_hook(record)
    trainer.run()
    return gradients


if __name__ == "__main__":
    place, shared = Path(sys.argv[1]), Accelerator(cpu=True, mixed_precision="no")
    found = {f"{name}/{key}": v for name in NAMES for key, v in gradients_of(name, place, shared).items()}
    if shared.is_main_process:
        torch.save(found, place)
