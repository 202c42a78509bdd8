"""Steps that the device skips by itself, here on the CPU: they must end as the steps that the host looks at.

Run as a script it compares the two in two processes.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from unistep.core.parameterization import EDMScaling, Preconditioned
from unistep.data.dataset import ImageDataset
from unistep.objectives.denoising import DenoisingConfig, DenoisingObjective
from unistep.training.config import OptimizerConfig, TrainerConfig
from unistep.training.guard import Guard
from unistep.training.skips import DeviceSkips
from unistep.training.step import TrainingStep
from unistep.workflows.runs.network import build_network

BAD = (2, 3, 6)
STEPS = 9


class NotFinite(DenoisingObjective):
    """Denoising whose loss is no number in some steps."""

    def loss(self, student, x, class_labels, step, random, dropout_seed):
        losses = super().loss(student, x, class_labels, step, random, dropout_seed)
        return losses * torch.nan if step in BAD else losses


def training(folder: Path, unasked: bool) -> TrainingStep:
    from unistep.networks.patched_config import PatchedUNetConfig

    config = PatchedUNetConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        attn_norm_num_groups=4,
        attention_head_dim=8,
    )
    student = Preconditioned(build_network(config, 0), EDMScaling())
    images = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    made = TrainingStep(
        folder,
        student,
        NotFinite(DenoisingConfig()),
        ImageDataset(images),
        TrainerConfig(steps=STEPS, batch_size=4, optimizer=OptimizerConfig("adamw", 1e-3, clip_grad_norm=1.0)),
        seed=0,
        accelerator=Accelerator(cpu=True),
        use_labels=False,
        flip=True,
        title="test",
    )
    if unasked:
        made._skips = DeviceSkips(torch.device("cpu"))
    return made


def compare(folder: Path) -> None:
    """Makes the same steps with and without being asked, and compares what they leave."""
    asked, unasked = training(folder, unasked=False), training(folder, unasked=True)
    for step in range(STEPS):
        for one in (asked, unasked):
            one.train_step(step)
            one.step = step + 1
    unasked.settle()
    assert unasked.guard.skipped == asked.guard.skipped == len(BAD) and unasked.losses.counts == asked.losses.counts
    torch.testing.assert_close(unasked.losses.sums, asked.losses.sums)
    for a, b in zip(asked.student.parameters(), unasked.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for name, average in asked.ema.averages[0.999].items():  # changes are added in another order
        torch.testing.assert_close(average, unasked.ema.averages[0.999][name], rtol=1e-5, atol=1e-6)


def test_a_step_that_the_device_skips_leaves_what_the_hosts_leaves(tmp_path, caplog: pytest.LogCaptureFixture):
    compare(tmp_path)
    assert any("3 of the steps before 10 are skipped" in record.getMessage() for record in caplog.records)


def test_counts_are_those_of_the_guard():
    skips, guard = DeviceSkips(torch.device("cpu")), Guard(skipped=1, in_a_row=1)
    skips.begin(guard)
    for finite in (False, True, True, False, False):
        skips.count(torch.tensor(2.0 if finite else torch.nan), torch.tensor(finite))
        guard = guard.after(finite)
    found = skips.ask(Guard(skipped=1, in_a_row=1))
    assert found.guard == guard and found.taken == 2 and found.loss.item() == 4.0
    assert not skips.pending


@pytest.mark.slow
def test_two_processes_skip_the_same_steps(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    from several import several

    several(2, compare, Path(sys.argv[1]))
