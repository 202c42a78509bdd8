"""What the methods are called, and the objective of each."""

import dataclasses

import pytest
import torch
from torch import nn

from unistep.core.parameterization import EDMScaling, Preconditioned
from unistep.core.random import ImageRandom, image_seed
from unistep.objectives.consistency import ConsistencyConfig, ConsistencyObjective
from unistep.objectives.continuous import ContinuousObjective
from unistep.objectives.methods import METHODS, method_name
from unistep.objectives.progressive import ProgressiveConfig, ProgressiveObjective
from unistep.objectives.protocol import MethodConfig, Objective, ObjectiveInputs
from unistep.samplers.guidance import Guided

TOTAL = 50
CHANGES = {"ict": {"start_scales": 4, "end_scales": 8}, "ct": {"end_scales": 8}, "pd": {"start_scales": 4}}


class Affine(nn.Module):
    """Two weights; the outputs differ from class to class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor(0.4)), nn.Parameter(torch.tensor(0.1))

    def forward(self, x, c_noise, class_labels=None, *, generator=None, c_end=None):
        shift = self.bias if class_labels is None else self.bias * class_labels[:, None, None, None]
        end = 0 if c_end is None else c_end[:, None, None, None]
        return self.weight * (x - end).tanh() + shift


def config_of(name: str) -> MethodConfig:
    return METHODS[name].config(**CHANGES.get(name, {}))


def student(name: str = "ect") -> Preconditioned:
    flow_map = config_of(name).model().get("flow_map", False)
    return Preconditioned(Affine(), EDMScaling(noise_embedding="edm"), flow_map=flow_map)


def inputs(network: nn.Module | None = None, **more) -> ObjectiveInputs:
    return ObjectiveInputs(network or student(), TOTAL, **more)


# ----------------------------------------------------------------------------------------------------------- names


def test_every_row_has_a_name_of_its_own():
    names = [method_name(row.config()) for row in METHODS.values()]
    assert names == [row.title for row in METHODS.values()] and len(set(names)) == len(METHODS)
    for key, name in zip(METHODS, names, strict=True):
        assert name.lower() == key or key == "edm" or name.lower().endswith(f"({key.replace('-', ' ')})")


def test_numbers_do_not_change_the_method_and_slots_do():
    ect = METHODS["ect"].config()
    assert method_name(dataclasses.replace(ect, P_mean=0.3, stages=4)) == method_name(ect)
    assert method_name(dataclasses.replace(ect, guidance=1.5)) == method_name(ect) + ", guidance 1.5"
    assert method_name(dataclasses.replace(ect, distance="l1")).startswith("consistency objective: mapping, ")
    assert method_name(METHODS["scd"].config(tangent="clip", P_std=1.0)) == METHODS["scd"].title
    assert method_name(METHODS["scd"].config(velocity="data")) == METHODS["sct"].title
    assert method_name(METHODS["pd"].config(start_scales=8, guidance=2.0)).endswith("(PD), guidance 2")


def test_a_perceptual_distance_is_told_and_is_the_same_method():
    cd = METHODS["cd"].config(distance="lpips")
    assert method_name(cd) == "consistency distillation (CD), LPIPS"
    assert method_name(dataclasses.replace(cd, guidance=2.0)) == "consistency distillation (CD), LPIPS, guidance 2"
    own = dataclasses.replace(cd, target="stop-gradient")
    assert method_name(own) == "consistency objective: uniform, heun, stop-gradient, lpips, uniform, fixed"


@pytest.mark.parametrize("model", ["mnist", "mnist-teacher"])
def test_the_models_that_ship_say_how_they_were_trained(model: str):
    from unistep.formats.model_folder.folder import load_model
    from unistep.workflows.models import EMBEDDED

    assert load_model(EMBEDDED.parent / model).method in (
        method_name(METHODS["ect"].config(guidance=1.6)),
        "EDM denoising",
    )


# ------------------------------------------------------------------------------------------------------- objectives


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_an_objective_that_trains(name, generator):
    """One step of it: a loss for each image, a gradient for each weight trained, and a state that comes back."""
    network = student(name)
    objective = config_of(name).build(inputs(network, teacher=student()))
    assert isinstance(objective, Objective)
    x = torch.rand(4, 1, 4, 4, generator=generator) * 2 - 1
    step = TOTAL // 2
    critic = objective.trained(step)
    trained = network if critic is None else objective.critics()[critic].network

    def loss():
        return objective.loss(network, x, None, step, ImageRandom([image_seed(0, i) for i in range(4)]), 3)

    first = loss()
    assert first.shape == (4,) and first.isfinite().all() and len(first.unique()) > 1
    first.mean().backward()
    for p in (*trained.parameters(), *objective.parameters()):
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any()
    assert torch.equal(loss(), first)  # all its randomness is given

    with torch.no_grad():
        for p in (*trained.parameters(), *objective.parameters()):
            p.add_(0.1)
    objective.after_step(network, step)
    start, end = objective.phase(step)
    assert start <= step and (end is None or step < end <= TOTAL)
    assert all(isinstance(value, float) for value in objective.scalars(step).values())
    other = config_of(name).build(inputs(student(name), teacher=student()))
    other.load_state_dict({name: v.clone() for name, v in objective.state_dict().items()})
    assert other.state_dict().keys() == objective.state_dict().keys()
    assert all(torch.equal(other.state_dict()[name], v) for name, v in objective.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_need_a_teacher_say_so(name):
    config = config_of(name)
    if config.needs_teacher:
        with pytest.raises(ValueError, match="needs a teacher"):
            config.build(inputs())
    else:
        config.build(inputs())
    if name != "edm":
        guided = dataclasses.replace(config, guidance=2.0)
        assert guided.needs_teacher
        assert guided.build(inputs(teacher=Guided(student(), 2.0, 3))) is not None


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("edm", "pd")])
def test_guidance_needs_a_guided_teacher(name):
    with pytest.raises(ValueError, match="needs a guided teacher"):
        METHODS[name].config(guidance=2.0).build(inputs(teacher=student()))


def test_the_parts_go_where_they_belong():
    network, guide = student(), student()

    def perceptual(a, b):
        return (a - b).square().mean((1, 2, 3))

    lpips = METHODS["cd"].config(distance="lpips")
    found = lpips.build(ObjectiveInputs(network, 20, 0.7, teacher=guide, perceptual=perceptual))
    assert isinstance(found, ConsistencyObjective)
    assert (found.teacher, found.perceptual, found.sigma_data, found.total_steps) == (guide, perceptual, 0.7, 20)
    assert found.target is not None and found.target is not network
    assert isinstance(METHODS["sct"].config().build(ObjectiveInputs(network, 20, 0.7)), ContinuousObjective)
    distilling = ProgressiveConfig(4, 2).build(ObjectiveInputs(network, 20, 0.7, teacher=guide))
    assert isinstance(distilling, ProgressiveObjective)
    assert distilling.sigma_data == 0.7 and distilling.target is not network
    plain = ConsistencyConfig(target="stop-gradient")
    assert plain.build(ObjectiveInputs(network, 20)).target is None  # pyright: ignore
