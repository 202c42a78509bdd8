"""Flow maps, TCM and CMT learn to sample a mixture of Gaussians in one step; flow maps in two jumps too.

Data, samplers and bar are those of test_mixture.py. Every student begins as the diffusion model of the same pretraining
(TCM as a consistency model tuned from it), its input for the end without effect.
"""

import dataclasses

import pytest
import torch
from closed_form import SIGMA_DATA, Perceptron, bumps_of, student_of, train
from test_mixture import (
    BAR,
    BATCH,
    DATA,
    EMA_DECAY,
    OPTIMIZER,
    SAMPLES,
    WIDTH,
    distance,
    draws,  # noqa: F401 - a fixture, as the next three
    exact,  # noqa: F401
    pretrained,  # noqa: F401
    unchecked,  # noqa: F401
)
from torch import nn

from unistep.core import flow
from unistep.core.parameterization import EDMScaling, Preconditioned
from unistep.core.random import ImageRandom
from unistep.objectives.methods import METHODS
from unistep.objectives.protocol import ObjectiveInputs
from unistep.samplers.consistency import sample_onestep
from unistep.samplers.jumps import sample_jumps

pytestmark = pytest.mark.slow

STEPS = 3000
# The levels near 80 often enough, and ends everywhere: see test_flow_convergence.py. The minimum of a weighted square
# whose weight is that of its own value is no mean, which in two dimensions matters: see test_mixture.py.
PAIRS = {"P_mean": -0.3, "P_std": 1.8, "end_P_mean": -2.5, "end_P_std": 3.0, "p": 0.0}
CHANGES = {
    "meanflow": PAIRS,
    "imf": PAIRS,
    "soflow": PAIRS | {"last_gap": 0.003},
    "facm": {"P_mean": -0.3, "P_std": 1.8},
}
MIDDLE = 2.0


class FlowPerceptron(Perceptron):
    """A perceptron whose units the end scales and shifts too, by nothing at first."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width)
        self.register_buffer("ends", torch.linspace(-0.1, 1.1, 10))
        self.of_end = nn.ModuleList(nn.Linear(160, 2 * width, bias=False) for _ in self.layers)
        for layer in self.of_end:
            nn.init.zeros_(layer.weight)

    def forward(self, x, c_noise, class_labels=None, *, generator=None, c_end):
        r = flow.time_of((4 * c_noise).exp()) - c_end
        of_end = torch.softmax(-((r[:, None] - self.ends) / (self.ends[1] - self.ends[0])).square(), 1)
        h, bumps = x.flatten(1), bumps_of(c_noise, self.centres)
        # An end that is the time itself has no effect: the student is then the diffusion model.
        both = c_end[:, None] * (bumps[:, :, None] * of_end[:, None, :]).flatten(1)
        for layer, modulation, more in zip(self.layers, self.modulations, self.of_end, strict=True):
            scale, shift = (modulation(bumps) + more(both)).chunk(2, dim=1)
            h = nn.functional.silu((1 + scale) * layer(h) + shift)
        return self.last(h).view(x.shape)


def trained(name, student, steps, **changes):
    objective = METHODS[name].config(**changes).build(ObjectiveInputs(student, steps, SIGMA_DATA, teacher=DATA))
    optimizer = dataclasses.replace(OPTIMIZER, lr=2e-3) if name == "tcm" else OPTIMIZER
    batch = BATCH // 16 if name == "cmt" else BATCH
    return train(student, objective, DATA, optimizer, steps, batch=batch, ema_decay=EMA_DECAY)


@pytest.mark.parametrize("name", CHANGES)
def test_a_flow_map_samples_a_mixture(name, draws, exact, pretrained):  # noqa: F811
    student = Preconditioned(FlowPerceptron(2, WIDTH), EDMScaling(SIGMA_DATA, noise_embedding="edm"), flow_map=True)
    missing, unexpected = student.load_state_dict(pretrained.state_dict(), strict=False)
    assert not unexpected and all("end" in key for key in missing)
    student = trained(name, student, STEPS, **CHANGES[name])

    gamma = METHODS[name].config().model().get("gamma", 0.0)

    def sampler(sigmas):
        fresh = ImageRandom(range(SAMPLES))
        return lambda x_T: sample_jumps(student, x_T, sigmas, clip=False, gamma=gamma, random=fresh)

    ratios = [distance(sampler(sigmas), draws) / exact for sigmas in ((80.0,), (80.0, MIDDLE))]
    assert max(ratios) <= BAR, f"{name}: {ratios} times the exact sampler's energy distance"


@pytest.mark.parametrize("stages", [("cmt",), ("cmt", "ect"), ("ect", "tcm")], ids="-".join)
def test_stages_sample_a_mixture(stages, draws, exact, pretrained):  # noqa: F811
    changes = {"ect": {"huber_c": 0.03}, "tcm": {"ratio": 0.99, "huber_c": 0.03}}
    if stages[0] == "cmt":
        changes["ect"] |= {"q": 256.0, "stages": 1}
    student = student_of(METHODS[stages[-1]].config(), Perceptron(2, WIDTH))
    student.load_state_dict(pretrained.state_dict())
    for name in stages:
        student = trained(name, student.requires_grad_(True), STEPS // len(stages), **changes.get(name, {}))
    ratio = distance(lambda x_T: sample_onestep(student, 80.0 * x_T, clip=False), draws) / exact
    assert ratio <= BAR, f"{stages}: {ratio:.2f} times the exact sampler's energy distance"
