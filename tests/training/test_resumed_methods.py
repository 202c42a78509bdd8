"""A run that is stopped and resumed equals the uninterrupted one, by the methods with more than one stage or input."""

import os
import signal

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from unistep.core.parameterization import EDMScaling, Preconditioned
from unistep.data.dataset import ImageDataset
from unistep.objectives.methods import METHODS
from unistep.objectives.protocol import ObjectiveInputs
from unistep.runtime.interrupt import Interrupted
from unistep.training.config import OptimizerConfig, TrainerConfig
from unistep.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_accelerator_left")


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor(0.4)), nn.Parameter(torch.tensor(0.1))

    def forward(self, x, c_noise, class_labels=None, *, generator=None, c_end=None):
        end = 0 if c_end is None else c_end[:, None, None, None]
        return self.weight * (x - end).tanh() + self.bias * c_noise[:, None, None, None].cos()


@pytest.mark.parametrize("name", ["tcm", "cmt", "meanflow", "imf", "soflow", "facm"])
def test_resumed_run_is_the_uninterrupted_one(name, tmp_path, generator):
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8, generator=generator)
    config = METHODS[name].config(**({"points": 3} if name == "cmt" else {}))
    accelerator = Accelerator(cpu=True, mixed_precision="no")

    def trainer(folder: str, stop_at: int | None = None) -> Trainer:
        flow_map = config.model().get("flow_map", False)
        student = Preconditioned(Affine(), EDMScaling(noise_embedding="edm"), flow_map=flow_map)
        objective = config.build(
            ObjectiveInputs(
                student, 4, teacher=lambda x, sigma, labels=None, /: x / (1 + sigma**2)[:, None, None, None]
            )
        )
        own = objective.loss

        def loss(student, x, labels, step, random, seed):
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return own(student, x, labels, step, random, seed)

        objective.loss = loss  # pyright: ignore
        settings = TrainerConfig(steps=4, batch_size=4, optimizer=OptimizerConfig(name="adamw", lr=1e-2))
        return Trainer(
            tmp_path / folder,
            student,
            objective,
            ImageDataset(images, None),
            settings,
            seed=0,
            accelerator=accelerator,
            progress=False,
        )

    whole = trainer("whole").run().state_dict()
    with pytest.raises(Interrupted):
        trainer("cut", stop_at=1).run()
    resumed = trainer("cut").run().state_dict()
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert not torch.equal(whole["network.weight"], torch.tensor(0.4))
