"""The scheduler on tensors without memory, which stand for those of an accelerator: with the CPU's they do not mix."""

import torch

from unistep.pipelines.scheduler import CMStochasticIterativeScheduler


def test_a_step_is_made_on_the_device_of_the_images():
    scheduler = CMStochasticIterativeScheduler()
    scheduler.set_timesteps(1)  # noise is drawn on the CPU, and a schedule of one step draws none
    sample, (t,) = torch.empty(2, 3, 8, 8, device="meta"), scheduler.timesteps
    output = scheduler.scale_model_input(sample, t)
    assert scheduler.step(output, t, sample, return_dict=False)[0].device.type == "meta"


def test_noise_is_added_on_the_device_of_the_images():
    scheduler = CMStochasticIterativeScheduler()
    scheduler.set_timesteps(2)
    image = torch.empty(2, 3, 8, 8, device="meta")
    assert scheduler.add_noise(image, image, scheduler.timesteps).device.type == "meta"
